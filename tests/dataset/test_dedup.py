"""Images that look alike are found, all of them and no others, and one of each stays."""

import io
import random
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture
from PIL import ImageEnhance

from cahlib.commands.cli import main
from cahlib.core.config import Output
from cahlib.core.records import DropReason
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.write.duplicate_index import DuplicateIndex, load_duplicate_index
from cahlib.demo.world import SCENES
from cahlib.image.perceptual_hash import NearIndex, near_pairs, same_colours
from tests.world import judged as world
from tests.world.pictures import chroma, phash


def drawn(number, size=(320, 240)):
    """A picture of coloured discs on a gradient."""
    chance = random.Random(number)
    picture = Picture.linear_gradient("L").resize((640, 480)).convert("RGB")
    for _ in range(12):
        x, y, side = chance.randrange(600), chance.randrange(440), chance.randrange(40, 240)
        picture.paste(tuple(chance.randrange(256) for _ in range(3)), (x, y, x + side, y + side))
    return picture.resize(size)


def saved(picture, format="JPEG", **options):
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def bits(one, other):
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_a_picture_keeps_its_hash_through_what_happens_to_pictures_on_the_web():
    for number in range(20):
        picture = drawn(number)
        own = phash(saved(picture, "PNG"))
        for other in (
            saved(picture, quality=60),
            saved(picture.resize((131, 98)), "WEBP", quality=70),
            saved(picture.resize((1000, 700)), quality=80),
            saved(ImageEnhance.Brightness(picture).enhance(1.1), quality=90),
            saved(picture.convert("L"), "PNG"),
        ):
            assert bits(own, phash(other)) <= 4
    different = [phash(saved(drawn(number))) for number in range(60)]
    assert min(bits(a, b) for a in different for b in different if a != b) > 4
    assert len(set(different)) == 60


def test_pictures_that_differ_in_transparency_or_in_their_16_bits_alone_do_not_look_alike():
    shapes = [drawn(number).convert("L") for number in range(9)]
    logos = [Picture.new("LA", shape.size) for shape in shapes]
    for logo, shape in zip(logos, shapes, strict=True):
        logo.putalpha(shape)  # black all over
    greys = [shape.convert("I;16").point(lambda value: value * 256) for shape in shapes]
    for pictures in (logos, greys):
        hashes = [phash(saved(each, "PNG")) for each in pictures]
        assert min(bits(a, b) for a in hashes for b in hashes if a != b) > 4
        assert len(set(hashes)) == 9


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=7)), max_size=30),
    st.integers(1, 8),
)
def test_all_that_are_near_are_found_and_no_others(seeds, changes, distance):
    changed = [seeds[at % len(seeds)] ^ sum(1 << bit for bit in flipped) for at, flipped in changes]
    hashes = np.array(sorted({*seeds, *changed}), np.uint64)
    found = {
        tuple(sorted(pair)) for pairs in near_pairs(hashes, distance) for pair in pairs.tolist()
    }
    wanted = {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= distance
    }
    assert found == wanted


def turned(picture, degrees):
    """The same with other hues, as light and as strong as they were."""
    y, *colours = np.moveaxis(np.asarray(picture.convert("YCbCr"), np.float64), 2, 0)
    hues = np.array([colours[0] - 128 + 1j * (colours[1] - 128)]) * np.exp(1j * np.radians(degrees))
    pixels = np.stack([y, 128 + hues[0].real, 128 + hues[0].imag], axis=2)
    return Picture.fromarray(pixels.round().clip(0, 255).astype("uint8"), "YCbCr").convert("RGB")


def tinted(picture, blue, red):
    """The same, but for its colours: Cb and Cr moved."""
    y, cb, cr = picture.resize(picture.size).convert("YCbCr").split()
    cb, cr = cb.point(lambda value: value + blue), cr.point(lambda value: value + red)
    return Picture.merge("YCbCr", (y, cb, cr)).convert("RGB")


def cropped(picture, share):
    x, y = (round(side * share) for side in picture.size)
    return picture.crop((x, y, picture.width - x, picture.height - y))


#: What happens to pictures on the web.
HARMLESS = {
    "jpeg 30": lambda p: saved(p, quality=30),
    "jpeg 60": lambda p: saved(p, quality=60),
    "jpeg 4:4:4": lambda p: saved(p, quality=90, subsampling=0),
    "progressive": lambda p: saved(p, quality=75, progressive=True),
    "rgb jpeg": lambda p: saved(p, quality=85, keep_rgb=True),
    "webp": lambda p: saved(p, "WEBP", quality=50),
    "png": lambda p: saved(p, "PNG"),
    "smaller": lambda p: saved(p.resize((p.width * 2 // 5, p.height * 2 // 5)), quality=80),
    "larger": lambda p: saved(p.resize((p.width * 5 // 2, p.height * 5 // 2)), quality=80),
    "cropped by 1 %": lambda p: saved(cropped(p, 0.01), quality=85),
    "cropped by 2 %": lambda p: saved(cropped(p, 0.02), quality=85),
    "cropped by 3 %": lambda p: saved(cropped(p, 0.03), quality=85),
    "brighter": lambda p: saved(ImageEnhance.Brightness(p).enhance(1.1), quality=85),
    "darker": lambda p: saved(ImageEnhance.Brightness(p).enhance(0.9), quality=85),
    "more contrast": lambda p: saved(ImageEnhance.Contrast(p).enhance(1.1), quality=85),
}
#: What makes another thing of it: shirts of two colours.
RECOLOURED = {
    f"{degrees} degrees": lambda p, degrees=degrees: saved(turned(p, degrees), quality=85)
    for degrees in (20, 30, 60, 120, 180, 240, -20)
}


def same(one, other):
    """Whether two files are of the same picture: by perceptual hash alone, and with colours."""
    one, other = ([int(each(data), 16) for each in (phash, chroma)] for data in (one, other))
    known = NearIndex(4)
    known.add(*one)
    return other[0] in known, known.has(*other)


@pytest.fixture(scope="module")
def pictures():
    with tarfile.open(SCENES) as scenes:
        files = [m for m in scenes if not m.name.endswith("json")][:30]
        every = [Picture.open(scenes.extractfile(each)).convert("RGB") for each in files]
    return [(each, saved(each, "PNG")) for each in (*every, *map(drawn, range(6)))]


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_colours_part_no_pictures_that_were_changed_as_the_web_changes_them(pictures, change):
    near, parted = 0, 0
    for picture, file in pictures:
        by_hash, by_both = same(file, change(picture))
        near += by_hash
        parted += by_hash and not by_both
    assert near > 10 and parted == 0


def test_pictures_of_other_colours_are_not_the_same(pictures):
    """Whose hashes are near; what is nearly grey has the same hues however it is turned."""
    near = found = 0
    for change in RECOLOURED.values():
        for picture, file in pictures:
            by_hash, by_both = same(file, change(picture))
            near += by_hash
            found += by_both
    assert near > 20 and found <= near / 10


def test_a_dataset_without_colours_is_compared_by_hashes_alone():
    one, other = (saved(each, "PNG") for each in (drawn(3), turned(drawn(3), 5)))
    known = NearIndex(8, [int(phash(one), 16)])
    assert known.has(int(phash(other), 16), int(chroma(other), 16))
    words = np.array([0, 0x8080808080808080, 0x8080808080808088, 0x8080808080808089], np.uint64)
    assert same_colours(words, words[1]).tolist() == [True, True, True, False]
    assert same_colours(words, words[0]).all()


def test_shirts_of_two_colours_both_stay(tmp_path, capsys):
    """Within a shard and beside the same hash, whichever is larger."""
    shirts = [
        tinted(drawn(4, size), *tint)
        for size in ((320, 240), (640, 480))
        for tint in ((0, 0), (12, 0), (0, -12))
    ]
    greys = [each.convert("L") for each in shirts[::3]]
    every = [*shirts, *greys]
    near = {phash(saved(each)) for each in every}
    assert all(bits(one, other) <= 8 for one in near for other in near)
    made = [shown(number, each.convert("RGB")) for number, each in enumerate(every)]
    world.write_these(tmp_path, made, shard="s-0")
    assert main(["dedup", str(tmp_path), "--distance", "8", "--apply"]) == 0
    assert world.left(tmp_path) == [3, 4, 5, 7]
    options = Output(output=str(tmp_path), duplicates="near", distance=8)
    known = DuplicateIndex(options, [], seen=lambda _: False)
    reasons = [known.find_duplicate(each) for each in made]
    assert [at for at, reason in enumerate(reasons) if reason is None] == [0, 1, 2, 6]
    again = load_duplicate_index(
        options, [each.shard for each in read_manifests(tmp_path)], seen=lambda _: False
    )
    found = {again.find_duplicate(each) for each in made}
    assert found <= {DropReason.SAME_IMAGE, DropReason.NEAR_DUPLICATE}


def test_a_dataset_of_the_first_layout_is_deduplicated_as_before(tmp_path):
    scores = {score: f"ViT-tiny/none {score}" for score in world.SPEC.scores}
    spec = replace(world.SPEC, scores=scores, layout=1)
    made = [shown(n, tinted(drawn(4), 12 * n, 0)) for n in range(3)]
    world.write_these(tmp_path, made, shard="s-0", spec=spec)
    assert "chroma" not in pq.read_schema(tmp_path / "metadata/metadata_s-0.parquet").names
    assert list(verify(tmp_path)) == []
    assert main(["dedup", str(tmp_path), "--distance", "8", "--apply"]) == 0
    assert len(world.left(tmp_path)) == 1 and list(verify(tmp_path)) == []
    assert "chroma" not in pq.read_schema(tmp_path / "metadata/metadata_s-0.parquet").names


def shown(number, picture, *, similarity=0.4):
    """A judged image of this picture."""
    made = world.judged(number, similarity=similarity)
    width, height = picture.size
    size = {"width": width, "height": height, "format": "jpg"}
    return replace(made, image=replace(made.image, data=saved(picture), **size))


@pytest.fixture
def folder(tmp_path):
    """Three of one picture and two of another in two shards, and two others."""
    first = [
        shown(0, drawn(1)),
        shown(1, drawn(1, (640, 480))),
        shown(2, drawn(2), similarity=0.31),
        shown(3, drawn(3)),
    ]
    second = [shown(4, drawn(2), similarity=0.35), shown(5, drawn(1)), shown(6, drawn(4))]
    world.write_these(tmp_path, first, shard="s-0")
    world.write_these(tmp_path, second, shard="s-1")
    return tmp_path


def test_the_report_comes_first_and_changes_nothing(folder, capsys):
    assert main(["dedup", str(folder)]) == 0
    assert "3 of 7 images look like another of the dataset." in capsys.readouterr().out
    assert world.left(folder) == list(range(7))


def test_of_each_the_largest_stays_or_what_fits_its_text_best(folder, capsys):
    assert main(["dedup", str(folder), "--apply"]) == 0
    assert "Removed 3 pairs from 2 shards." in capsys.readouterr().out
    assert world.left(folder) == [1, 3, 4, 6]
    assert list(verify(folder)) == []
    lost = [each.stats.dropped[DropReason.NEAR_DUPLICATE] for each in read_manifests(folder)]
    assert lost == [2, 1]
    assert main(["dedup", str(folder), "--apply"]) == 0
    assert "0 of 4 images" in capsys.readouterr().out


def test_mistakes_are_said_in_one_sentence(tmp_path, capsys):
    for arguments, sentence in (
        ([str(tmp_path)], "holds no dataset"),
        ([str(tmp_path), "--apply"], "holds no dataset"),
        ([str(tmp_path), "--distance", "9"], "bits from 0 to 8"),
        ([str(tmp_path / "none")], "there is no such folder"),
        ([str(tmp_path), "--semantic", "0.95", "--distance", "4"], "have no --distance"),
        ([str(tmp_path), "--against", "set", "--keep", "largest"], "choose by --keep"),
    ):
        assert main(["dedup", *arguments]) == 2
        assert sentence in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
