"""Half pictures are refused, whatever ends them; whole ones are kept, whatever is odd about them.

Many more are tried by `tests.benchmarks.bench_proof`.
"""

import io
import random
import shutil
from pathlib import Path

import pytest
import simplejpeg
from PIL import Image

from cahlib.core.config import Download
from cahlib.core.records import DropReason
from cahlib.image.validate import validate_image
from tests.benchmarks.bench_proof import (
    EOI,
    HARMLESS,
    SURE,
    drawn,
    encoded,
    encoders,
    flipped,
    invented,
    pixels,
    saved,
)

ANY = [Download(min_bytes=0, min_side=1), Download(min_bytes=0, min_side=1, resize=64)]
CASES = Path(__file__).parent.parent.parent.parent / "shared/cases/images"
FILES = {name: encode(drawn(random.Random(name)), 60) for name, encode in encoders().items()}


@pytest.mark.parametrize("options", ANY, ids=["original", "small"])
@pytest.mark.parametrize("damage", SURE)
@pytest.mark.parametrize("name", FILES)
def test_half_pictures_are_refused(name, damage, options):
    data, chance = FILES[name], random.Random(name + damage)
    while invented(pixels(data), changed := SURE[damage](data, chance)) <= 0.01:
        pass  # too near to the end
    assert validate_image(changed, options) is DropReason.BROKEN_IMAGE


@pytest.mark.parametrize("options", ANY, ids=["original", "small"])
@pytest.mark.parametrize("oddity", HARMLESS)
def test_what_is_odd_and_does_no_harm_is_kept(oddity, options):
    for name, data in FILES.items():
        kept = validate_image(HARMLESS[oddity](data, random.Random(name)), options)
        assert not isinstance(kept, DropReason), name
        with Image.open(io.BytesIO(kept["data"])) as image:
            image.load()


@pytest.mark.skipif(not CASES.exists(), reason="the files as they were found are not here")
@pytest.mark.parametrize("options", ANY, ids=["original", "small"])
@pytest.mark.parametrize("path", sorted(CASES.glob("*")), ids=lambda path: path.name)
def test_files_as_they_were_found(path, options):
    kept = validate_image(path.read_bytes(), options)
    assert (kept is DropReason.BROKEN_IMAGE) == path.name.startswith("cut")
    if not isinstance(kept, DropReason):
        with Image.open(io.BytesIO(kept["data"])) as image:
            image.load()
    if path.name.startswith("profile") and options.resize:
        left, right = (image.getpixel((image.width * at // 4, 30)) for at in (1, 3))
        wanted = (60, 40, 201), (60, 201, 40)
        assert all(
            abs(a - b) <= 6 for a, b in zip(left + right, wanted[0] + wanted[1], strict=True)
        )


def test_only_the_first_end_mark_ends_a_picture():
    whole = FILES["4:2:0"]
    assert (
        validate_image(whole + EOI + whole, ANY[0])["data"] == validate_image(whole, ANY[0])["data"]
    )


@pytest.mark.parametrize("name", FILES)
def test_a_decoder_that_stops_few_bytes_early_may_be_right(name):
    data, chance = FILES[name], random.Random(name)
    tried = [HARMLESS["few bytes before the end"](data, chance) for _ in range(20)]
    assert sum(validate_image(each, ANY[0]) is DropReason.BROKEN_IMAGE for each in tried) <= 1


def test_a_decoder_that_lost_its_way_and_stops_few_bytes_early_is_not_right():
    # of one picture, all such files end alike
    chance, found = random.Random(1), []
    while len(found) < 8:
        whole = saved(drawn(chance), "L", quality=75)
        for _ in range(60):
            changed = flipped(whole, chance)
            if stops_early(changed) and invented(pixels(whole), changed) > 0.01:
                found.append(changed)
                break
    assert sum(validate_image(each, ANY[0]) is not DropReason.BROKEN_IMAGE for each in found) <= 1


def stops_early(data):
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_width=1, min_height=1, strict=True)
    except ValueError as error:
        return "extraneous bytes before marker 0xd9" in str(error)
    return False


@pytest.mark.skipif(not shutil.which("cjpeg"), reason="libjpeg's own encoder is not here")
@pytest.mark.parametrize(
    "how",
    [
        ["-sample", "3x1"],
        ["-sample", "1x1,2x2,1x1"],
        ["-sample", "2x2,1x1,1x2"],
        ["-arithmetic"],
        ["-arithmetic", "-progressive"],
    ],
)
def test_what_cannot_be_proven_is_refused(how):
    data = encoded(drawn(random.Random(1)), *how)
    assert {validate_image(data, options) for options in ANY} == {DropReason.BROKEN_IMAGE}
