"""Nothing that looks like an image on a list of known harm is judged, shown or written."""

import gzip
import io

import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture

from cahlib.core.config import Judge, replace_settings
from cahlib.core.errors import ConfigError
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.image.perceptual_hash import with_looks
from cahlib.model.known_harm import drop_known_harm, load_known_harm
from cahlib.run.pipeline import run
from tests.world import small
from tests.world.pictures import image, phash, picture


def drawn(number):
    """A picture unlike the others."""
    smooth = Picture.open(io.BytesIO(picture(size=(9, 8 + number)))).resize((400, 300))
    file = io.BytesIO()
    smooth.save(file, "PNG")
    return file.getvalue()


def again(data):
    """The same picture, smaller and compressed anew."""
    file = io.BytesIO()
    Picture.open(io.BytesIO(data)).resize((200, 150)).save(file, "JPEG", quality=40)
    return file.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_what_looks_like_a_listed_image_is_only_counted(tmp_path, packed):
    text = f"# two\n{phash(drawn(1)).upper()}\n{phash(drawn(3))}\n".encode()
    (tmp_path / "list").write_bytes(gzip.compress(text) if packed else text)
    near = load_known_harm((str(tmp_path / "list"),), "harm_looks", 4)
    images = [image(n, again(drawn(n))) for n in range(5)]
    stats = Stats()
    assert list(drop_known_harm(images, near, stats)) == [with_looks(images[n]) for n in (0, 2, 4)]
    assert stats.dropped == {DropReason.HARM_LOOKS: 2} and stats.entered[Stage.JUDGE] == 2
    assert list(drop_known_harm(images, load_known_harm((), "harm_looks", 4), stats)) == images


def test_a_strangers_image_that_cannot_be_decoded_is_left_to_the_judge(tmp_path):
    (tmp_path / "list").write_text(phash(drawn(1)))
    near = load_known_harm((str(tmp_path / "list"),), "harm_looks", 4)
    images = [image(0, drawn(0)[:300]), image(1, drawn(1))]
    assert list(drop_known_harm(images, near, Stats())) == images[:1]


@pytest.mark.parametrize("line", ["0123456789abcdef0", "0123456789abcdeg", "d41d8cd98f00b204" * 2])
def test_another_kind_of_list_is_refused(tmp_path, line):
    (tmp_path / "list").write_text(f"{line}\n")
    with pytest.raises(
        ConfigError, match="harm_looks: line 1 of .* is not a valid perceptual hash"
    ):
        load_known_harm((str(tmp_path / "list"),), "harm_looks", 4)
    with pytest.raises(ConfigError, match="harm_distance"):
        Judge(harm_distance=9)


def test_a_run_keeps_no_trace_of_it(tmp_path):
    crawl = small.write(tmp_path / "crawl", files=1, links=3)
    (tmp_path / "list").write_text(phash(picture()))
    with small.Pictures() as web:
        job = small.job(crawl, tmp_path / "set", web)
        outcome = run(replace_settings(job, harm_looks=(str(tmp_path / "list"),)))
    assert outcome.stats.dropped[DropReason.HARM_LOOKS] == 6
    assert not outcome.stats.unaccounted(Stage.JUDGE)
    rows = [pq.read_table(each).num_rows for each in (tmp_path / "set").glob("metadata/*.parquet")]
    assert sum(rows) == 0
    files = [each for each in (tmp_path / "set").rglob("*") if each.is_file()]
    assert not [each for each in files if picture()[400:500] in each.read_bytes()]
    assert not [each for each in files if b"data:image" in each.read_bytes()]  # nor in a report
