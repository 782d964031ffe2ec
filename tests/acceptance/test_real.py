"""Recorded pieces of the real web: every image that was stored and is good enough arrives."""

import io
import json
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cahlib import demo
from cahlib.core.records import Stage, Stats
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.demo.web import Answer, Web
from tests.world import command

REAL = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "real"
LEAST_BYTES, LEAST_SIDE = 1500, 32

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the recorded pages are not here")


@pytest.fixture(scope="module")
def recorded():
    """What the recorded web answers, by URL."""
    index = json.loads((REAL / "index.json").read_text())
    return {
        url: Answer(body=(REAL / "images" / file).read_bytes(), type=kind)
        for url, (file, kind) in index.items()
    }


def run(recorded, capsys, folder: Path, crawl: Path) -> Stats:
    with Web(recorded) as web:
        ran = command.said(
            capsys,
            *("run", "--crawl", crawl, "--output", folder, "--replay", web.address),
            *("--contact", "tests@example.org"),
            *("--languages", "all", "--min-bytes", LEAST_BYTES, "--min-side", LEAST_SIDE),
            # the tiny model knows no photos: everything that arrives is kept
            *("--model", demo.MODEL, "--threshold", -1, "--safety", demo.SAFETY),
        )
    assert ran.returncode == 0, ran.stderr
    assert list(verify(folder)) == []
    stats = sum((manifest.stats for manifest in read_manifests(folder)), Stats())
    assert [stats.unaccounted(stage) for stage in Stage] == [0, 0, 0, 0]
    return stats


def test_real_pages_become_a_dataset(recorded, tmp_path, capsys):
    stats = run(recorded, capsys, tmp_path / "dataset", REAL / "pages.warc.wat.gz")
    table = pq.read_table(tmp_path / "dataset" / "metadata").to_pylist()
    arrived = {row["URL"] for row in table}
    links = {url for _, url, _ in json.loads((REAL / "truth.json").read_text())}
    stored = {unquote(url): answer.body for url, answer in recorded.items()}
    good = {url for url in links if good_enough(stored.get(unquote(url), b""))}
    assert len(good) >= 5
    assert good - arrived <= refused_by_text(links)
    assert arrived <= good
    assert stats.left[Stage.FETCH] == stats.entered[Stage.JUDGE] >= len(arrived)


def good_enough(data: bytes) -> bool:
    """Whether an image passes the limits, by an independent look at it."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            long, short = max(picture.size), min(picture.size)
            kind = picture.format in ("JPEG", "PNG", "WEBP")
            return kind and len(data) >= LEAST_BYTES and short >= LEAST_SIDE and long <= 8 * short
    except OSError:
        return False


def refused_by_text(links: set[str]) -> set[str]:
    """Images all of whose texts are refused, as `tests/crawl/test_candidates.py` checks them."""
    from cahlib.core.config import Crawl
    from cahlib.crawl import texts

    said: dict[str, list[str]] = {}
    for _, url, alt in json.loads((REAL / "truth.json").read_text()):
        said.setdefault(url, []).append(alt)
    return {
        u
        for u in links
        if all(texts.text_drop_reason(texts.repair_text(a), Crawl()) for a in said[u])
    }


def test_files_as_common_crawl_made_them_run_through(recorded, tmp_path, capsys):
    stats = run(recorded, capsys, tmp_path / "dataset", REAL / "commoncrawl" / "*.gz")
    assert stats.left[Stage.READ] == 4
    assert stats.left[Stage.JUDGE] == 0
