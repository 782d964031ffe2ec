"""Images that look alike are found, all of them and no others, and one of each stays."""

import io
import random
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture
from PIL import ImageEnhance

from cahlib.cli import main
from cahlib.curate import seal
from cahlib.curate.perceptual import near, phash
from cahlib.curate.verify import verify
from cahlib.records import Reason
from tests.world import judged as world


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
    found = {tuple(sorted(pair)) for pairs in near(hashes, distance) for pair in pairs.tolist()}
    wanted = {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= distance
    }
    assert found == wanted


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


def left(folder):
    urls = pq.read_table(folder / "metadata", columns=["URL"])["URL"].to_pylist()
    return sorted(int(url.split("/")[-1].split(".")[0]) for url in urls)


def test_the_report_comes_first_and_changes_nothing(folder, capsys):
    assert main(["dedup", str(folder)]) == 0
    assert "3 of 7 images look like another of the dataset." in capsys.readouterr().out
    assert left(folder) == list(range(7))


def test_of_each_the_largest_stays_or_what_fits_its_text_best(folder, capsys):
    assert main(["dedup", str(folder), "--apply"]) == 0
    assert "Took 3 pairs out of 2 shards." in capsys.readouterr().out
    assert left(folder) == [1, 3, 4, 6]
    assert list(verify(folder)) == []
    lost = [sealed.tally.lost[Reason.NEAR_DUPLICATE] for sealed in seal.seals(folder)]
    assert lost == [2, 1]
    assert main(["dedup", str(folder), "--apply"]) == 0
    assert "0 of 4 images" in capsys.readouterr().out


def test_mistakes_are_said_in_one_sentence(tmp_path, capsys):
    for arguments, sentence in (
        ([str(tmp_path)], "holds no dataset with images"),
        ([str(tmp_path), "--apply"], "holds no dataset"),
        ([str(tmp_path), "--distance", "9"], "give 0 to 8 bits of 64"),
        ([str(tmp_path / "none")], "is no folder"),
    ):
        assert main(["dedup", *arguments]) == 2
        assert sentence in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
