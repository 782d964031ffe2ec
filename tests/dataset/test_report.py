"""What a dataset tells of itself: the report, the card and the summary."""

import base64
import inspect
import itertools
import json
import re
import shlex
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import DropReason, Stage
from cahlib.dataset.description import describe_job, write_description
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import manifest_path
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.show.summary import summarize, summary_lines
from cahlib.dataset.write.shard_writer import ScoredParcel, write_shard
from tests.world import judged as world

JOB = Job.from_values(
    {"crawl": "CC-MAIN-2024-10", "contact": "crawler@example.org", "blocked_domains": "/home/me/b"}
).values()

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=https://evil.example/x.png onerror=alert(1)>',
    "</style></head><script src=//evil.example></script>",
    "$funnel ${title} $$ {lead}",
    "\u202egnp.exe",
    "[click](javascript:alert(1)) | `a` <b>",
]


class Page(HTMLParser):
    """All that a page would do."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def put(folder, pairs, shard="s-0"):
    return write_shard(
        folder,
        pairs,
        ScoredParcel(parcel=world.parcel(shard, images=len(pairs)), stats=world.stats_of(pairs)),
        spec=world.SPEC,
        again=lambda judged: None,
    )


def card_of(folder, job=JOB):
    write_pages(folder, job)
    return (folder / "README.md").read_text(encoding="utf-8")


def page(folder, job=JOB):
    write_pages(folder, job)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def assert_harmless(page):
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "srcset", "data"):
            assert value.startswith("data:image/jpeg;base64,")
        if name == "href":
            assert tag == "a" and value.startswith("https://")
        if name == "style":
            assert re.fullmatch(r"(width|left|--of):[\w.%()-]+", value)
    assert "url(" not in "".join(page.texts) and "@import" not in "".join(page.texts)


def test_the_report_asks_for_nothing_and_shows_the_numbers(tmp_path):
    world.write(tmp_path)
    world.write(tmp_path, first=100, shard="s-1")
    found = page(tmp_path)
    assert_harmless(found)
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in (
        found.attributes
    )
    shown = " ".join(found.texts)
    for number in ("600", "18,000", "182", "60", "30"):  # records … kept
        assert number in found.texts, number
    assert "30 image–text pairs" in shown and "2 shards" in shown
    assert DropReason.HTTP_4XX.phrase in shown and DropReason.DISSIMILAR.phrase in shown
    assert "host3.example" in shown and "CC-MAIN-2024-10" in shown
    for heading in (
        "Some kept pairs",
        "Just kept",
        "Just dropped",
        "By host",
        "Some dropped pairs",
    ):
        assert heading in found.texts, heading
    assert "By language" not in found.texts  # all captions are English


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_and_do_nothing(tmp_path, text):
    url = f"https://evil.example/{text}"
    put(tmp_path, [world.judged(1, text=text, url=url)])
    found = page(tmp_path, {**JOB, "crawl": text})
    assert_harmless(found)
    assert found.texts.count(text) >= 2  # the caption, and the setting
    assert ("a", "href", url) in found.attributes


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=50), st.text(max_size=30))
def test_any_text_is_harmless(tmp_path_factory, text, path):
    folder = tmp_path_factory.mktemp("hostile")
    put(folder, [world.judged(1, text=text, url="https://a.example/" + path)])
    assert_harmless(page(folder))
    write_pages(folder, {**JOB, "crawl": text})


def test_a_dataset_without_shards_has_a_report_too(tmp_path):
    found = page(tmp_path)
    assert "This dataset has no finished shard yet." in found.texts
    assert "0 image–text pairs from 0 shards" in card_of(tmp_path)


def test_a_dataset_without_pairs_has_a_report_too(tmp_path):
    put(tmp_path, [world.judged(1, reason=DropReason.DISSIMILAR)])
    assert_harmless(page(tmp_path))


def test_the_gallery_shows_no_unsafe_picture_and_no_one_who_may_be_a_minor(tmp_path):
    pairs = [
        world.judged(1, nsfw="NSFW", format="png"),
        world.judged(2, nsfw="UNSURE", format="jpg", reason=DropReason.DISSIMILAR),
        world.judged(3, nsfw="UNSURE", reason=DropReason.MINOR),
        world.judged(4, nsfw="NSFW", reason=DropReason.ANIMAL),
        world.judged(5),
    ]
    shown = {each.text: each for each in put(tmp_path, pairs).gallery}
    assert set(shown) == {pairs[i].image.candidate.text for i in (0, 1, 4)}
    for pair, blurred in ((pairs[0], True), (pairs[1], True), (pairs[4], False)):
        each = shown[pair.image.candidate.text]
        small = Picture.open(BytesIO(base64.b64decode(each.jpeg)))
        assert small.size == (each.width, each.height) and max(small.size) <= 160
        edges = np.abs(np.diff(np.asarray(small.convert("L"), int), axis=1)).max()
        assert (edges < 20) == blurred
    write_pages(tmp_path, JOB)
    text = (tmp_path / "report.html").read_text()
    assert "NSFW, blurred" in text and "UNSURE, blurred" in text


def test_the_gallery_is_a_draw_that_does_not_depend_on_the_order(tmp_path):
    pairs, _ = world.some(60)
    one, two = put(tmp_path / "one", pairs), put(tmp_path / "two", pairs[::-1])
    assert one.gallery == two.gallery
    by_chance = [each for each in one.gallery if not each.near_threshold]
    uids = {each.image.candidate.uid for each in pairs if each.reason is None}
    assert [each.uid for each in by_chance if each.kept] == sorted(uids)[:4] and len(by_chance) == 8


def test_the_report_shows_both_sides_of_the_threshold_and_each_language_and_host(tmp_path):
    pairs, _ = world.some(60)
    near = [
        world.judged(900, similarity=0.3001, text="barely"),
        world.judged(901, similarity=0.2999, text="almost", reason=DropReason.DISSIMILAR),
    ]
    put(tmp_path, [*pairs, *near])
    pair = world.judged(902, text="govva")
    candidate = replace(pair.image.candidate, language="se")
    put(tmp_path, [replace(pair, image=replace(pair.image, candidate=candidate))], "s-1")
    texts = page(tmp_path).texts
    parts = [texts.index(each) for each in ("Just kept", "Just dropped", "By language", "By host")]
    just_kept, just_dropped, languages = (
        texts[start:end] for start, end in itertools.pairwise(parts)
    )
    assert just_kept.index("barely") < just_kept.index("0.300") + 4 and "almost" in just_dropped
    assert "se" in languages and "en" in languages
    assert [each for each in texts[parts[-1] :] if each.startswith("host")]


def test_huge_images_are_not_opened_for_show(tmp_path):
    pair = world.judged(1)
    pair = replace(pair, image=replace(pair.image, data=pair.image.data + bytes(2_000_000)))
    assert put(tmp_path, [pair]).gallery == ()


def test_the_summary_adds_up_the_shards(tmp_path):
    manifests = [world.write(tmp_path, shard="s-0"), world.write(tmp_path, first=100, shard="s-1")]
    found = summarize(tmp_path)
    assert (found.shards, found.pairs) == (2, 30)
    assert found.stats == manifests[0].stats + manifests[1].stats
    assert found.bytes == sum(s.size for each in manifests for s in each.files.values())
    assert found.similarity == pytest.approx(sum(each.similarity for each in manifests) / 2)
    assert sum(found.kept.values()) == 30 and sum(found.domains.values()) == 30
    for stage in Stage:
        assert found.stats.unaccounted(stage) == 0


def test_inspect_prints_the_numbers(tmp_path):
    world.write(tmp_path)
    lines = "\n".join(summary_lines(tmp_path))
    assert "15 pairs in 1 shard" in lines
    assert "fetch: 91 candidates in, 30 images out" in lines
    assert DropReason.TIMEOUT.phrase in lines and "host3.example" in lines
    with pytest.raises(ConfigError, match="holds no dataset"):
        list(summary_lines(tmp_path / "nothing"))


def test_a_damaged_manifest_is_one_sentence(tmp_path):
    world.write(tmp_path)
    path = tmp_path / manifest_path("s-0")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match="cah verify"):
        list(summary_lines(tmp_path))
    assert "This dataset has no finished shard yet." in page(tmp_path).texts


def test_the_card_says_what_is_owed(tmp_path):
    world.write(tmp_path)
    text = card_of(tmp_path)
    assert text.startswith("---\npretty_name:")
    assert "crawler@example.org to have something taken down" in text
    assert "| kept | 15 |" in text and "ViT-tiny/none" in text
    assert "/home/me" not in text  # nobody's business


def test_without_its_job_a_dataset_s_pages_have_its_settings(tmp_path):
    world.write(tmp_path)
    write_description(tmp_path, describe_job(replace_settings(Job(), consent="research")))
    for name in ("README.md", "report.html"):
        card_of(tmp_path, {"output": "elsewhere"})
        assert "research" in (tmp_path / name).read_text()


def test_the_models_of_a_cascade_are_named_where_the_threshold_is(tmp_path):
    world.write(tmp_path)
    sentence = "Further models dropped what they found less similar"
    text = card_of(tmp_path, {**JOB, "cascade": ["/home/me/b<i>:0.2", "quality:0.3"]})
    assert f"{sentence}: b" in text.partition("## Numbers")[0] and "/home/me" not in text
    assert sentence in (tmp_path / "report.html").read_text()
    assert sentence not in card_of(tmp_path) and "<i>" not in (tmp_path / "report.html").read_text()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's file
@pytest.mark.parametrize("numbered", [False, True])
def test_the_cards_code_runs(tmp_path, monkeypatch, capsys, numbered):
    """TensorFlow's part of it runs in test_formats, that of `datasets` in test_readers."""
    world.write(tmp_path)
    if numbered:
        world.write(tmp_path, first=100, shard="s-1")
        write_pages(tmp_path, {})
    text = card_of(tmp_path)
    assert ("{00000..00001}.tar" in text) == numbered
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        if "tensorflow" not in block and "load_dataset" not in block:
            exec(block, names)
    assert len(blocks) == 6 and len(names["table"]) == 15 * (1 + numbered)
    shown = capsys.readouterr().out
    assert f"({len(names['table'])}, 32)" in shown
    for uid in names["table"]["uid"]:
        assert uid in shown


def test_the_cards_commands_are_whole(tmp_path, monkeypatch):
    """Those of open_clip run in test_readers; of clip-retrieval's what its functions take."""
    world.write(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", card_of(tmp_path), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    (back,) = (line for line in blocks[1].replace("\\\n", "").splitlines() if " back " in line)
    words = shlex.split(back)
    options = dict(zip(words[2::2], words[3::2], strict=True))
    columns = json.loads(options["--columns_to_return"])
    table = pq.read_schema(tmp_path / "metadata/metadata_s-0.parquet").names
    assert {*columns} <= {*table} and options["--url_column"] in columns
    assert options["--clip_model"] == "open_clip:ViT-tiny/none"
    clip_back = pytest.importorskip("clip_retrieval.clip_back")
    taken = inspect.signature(clip_back.clip_back).parameters
    assert {each.removeprefix("--") for each in options} <= {*taken}


def test_a_model_that_only_files_hold_serves_no_search(tmp_path):
    """clip-retrieval loads what open_clip lists."""
    world.write(tmp_path)
    for values in ({"model": str(tmp_path)}, {"model": "ViT-B-32", "pretrained": "mine.pt"}):
        text = card_of(tmp_path, values)
        assert "clip-retrieval index" in text and "open_clip:" not in text
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
            subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_the_cards_front_is_what_the_hub_wants(tmp_path):
    data = pytest.importorskip("huggingface_hub").DatasetCard(card_of(tmp_path)).data
    assert data.license == "other" and data.license_link.startswith("https://")
    assert re.fullmatch(r"[a-z0-9-]+", data.license_name)


@pytest.mark.parametrize("obeyed", [1, 0])
def test_what_was_heard_and_not_obeyed_is_named_in_card_and_report(tmp_path, obeyed):
    made, _ = world.some(6)
    parcel = world.parcel("s-0", images=6)
    (refused,) = parcel.optouts
    heard = [replace(refused, obeyed=False)] * 3
    parcel = replace(parcel, optouts=(*[refused] * obeyed, *heard))
    write_shard(
        tmp_path,
        made,
        ScoredParcel(parcel=parcel, stats=world.stats_of(made)),
        spec=world.SPEC,
        again=lambda judged: None,
    )
    text = card_of(tmp_path, {**JOB, "consent": "research"})
    assert "(profile research)" in text and f"machine-readable form: {obeyed} image" in text
    assert "The owners of 3 candidates opted out in a form that this profile does not" in text
    shown = " ".join(page(tmp_path).texts)
    assert f"opted out: {obeyed} image" in shown and "not left out: 3 candidates;" in shown
    assert list(verify(tmp_path)) == []
