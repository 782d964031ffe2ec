"""`cah why`: what became of a link, as people and scripts read it."""

import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cahlib.core.records import DropReason, OptOut
from cahlib.dataset.manifest import encode_manifest, read_manifest
from cahlib.dataset.storage.upload import upload_shards
from cahlib.dataset.write.shard_writer import ScoredParcel, write_shard
from tests.dataset.test_upload import memory  # noqa: F401 - a fixture
from tests.world import judged as world
from tests.world.command import said

SHY = "https://shy.example/private/a.jpg"
PAGE = "https://page.example/gallery"


def opt_out(url, where, signal, value, **more):
    return OptOut(url=url, where=where, signal=signal, value=value, time=1.5, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of two shards: one with hostile text, redirects, opt-outs; one like it, without."""
    folder = tmp_path_factory.mktemp("why") / "set"
    made = world.placed(world.some(20)[0])
    scraped = world.parcel("s-0", images=20)
    outcomes = [*world.outcomes(scraped, made)]
    at = len(outcomes) - 1
    refused = world.candidate_of(replace(outcomes[at].candidate, url=SHY))
    outcomes[at] = outcomes[at]._replace(candidate=refused)
    hostile = world.candidate_of(replace(outcomes[21].candidate, text="red \x1b[31m\u202eevil"))
    outcomes[21] = outcomes[21]._replace(
        candidate=hostile, status=502, final_url="https://cdn.example/x.jpg", attempt=2, ms=1234
    )
    evidence = (
        opt_out(SHY, "https://shy.example/robots.txt", "robots.txt", "Disallow: /private"),
        opt_out("https://a.example/p.jpg", PAGE, "meta robots", "noai"),
        opt_out(made[0].image.candidate.url, PAGE, "tdmrep.json", "/", obeyed=False),
    )
    scraped = replace(scraped, optouts=evidence, silent=("silent.example",))
    scored = ScoredParcel(parcel=scraped, stats=world.stats_of(made), outcomes=outcomes)
    write_shard(folder, made, scored, spec=world.SPEC, again=lambda _: None)
    world.write(folder, first=100, shard="s-1")
    (folder / "outcomes/s-1.parquet").unlink()
    old = read_manifest(folder, "s-1")
    files = {path: each for path, each in old.files.items() if not path.startswith("outcomes/")}
    (folder / "shards/s-1.json").write_bytes(encode_manifest(replace(old, files=files)))
    return folder


def rows(folder):
    return pq.read_table(folder / "outcomes/s-0.parquet").to_pylist()


def row(folder, reason):
    return next(each for each in rows(folder) if each["reason"] == reason)


def told(capsys, folder, link):
    ran = said(capsys, "why", str(folder), link)
    assert ran.returncode == 0
    return ran.stdout


def found(capsys, folder, link):
    return json.loads(said(capsys, "why", str(folder), link, "--json").stdout)


def test_a_kept_pair_is_found_by_its_uid_and_url(folder, capsys):
    kept = row(folder, "kept")
    for link in (kept["uid"], kept["uid"].upper(), kept["url"], f"{kept['url']}#part"):
        out = told(capsys, folder, link)
        assert kept["url"] in out and "kept, in images/s-0.tar" in out
        assert f"similarity {kept['similarity']:.4f}, at or above the threshold of 0.3" in out
        assert "opt-out by tdmrep.json" in out and "not honoured" in out


def test_a_dropped_pair_tells_its_similarity(folder, capsys):
    dropped = row(folder, "dissimilar")
    out = told(capsys, folder, dropped["uid"])
    assert "dropped, dissimilar: text does not match the image" in out
    assert "below the threshold of 0.3" in out


def test_a_pair_that_a_cascade_dropped_is_not_said_to_miss_the_first_threshold(
    folder, tmp_path, capsys
):
    copy = shutil.copytree(folder, tmp_path / "set")
    path = copy / "outcomes/s-0.parquet"
    table = pq.read_table(path)
    at = table["reason"].to_pylist().index("dissimilar")
    similarities = table["similarity"].to_pylist()
    similarities[at] = 0.9
    place = table.column_names.index("similarity")
    table = table.set_column(place, "similarity", pa.array(similarities, pa.float64()))
    pq.write_table(table, path)
    out = told(capsys, copy, table["uid"][at].as_py())
    assert "dropped, dissimilar: text does not match the image" in out
    assert "at or above the threshold of 0.3; a model of --cascade dropped it" in out


def test_a_failed_link_tells_what_its_server_answered(folder, capsys):
    failed = rows(folder)[21]
    out = told(capsys, folder, failed["url"])
    assert f"dropped, {failed['reason']}: " in out and "1,234 ms, 2 attempts" in out
    assert "status 502, redirected to https://cdn.example/x.jpg" in out
    assert "\x1b" not in out and "\u202e" not in out and "red ?[31m?evil" in out
    assert failed["url"] in told(capsys, folder, "https://cdn.example/x.jpg")


def test_an_opt_out_comes_with_its_evidence(folder, capsys):
    out = told(capsys, folder, SHY)
    assert "dropped, opted_out: owner opted out, machine-readably" in out
    assert "opt-out by robots.txt at https://shy.example/robots.txt: Disallow: /private" in out
    # a link that never became a candidate, since its page refuses
    out = told(capsys, folder, "https://a.example/p.jpg")
    assert "dropped, page_opted_out" in out and f"opt-out by meta robots at {PAGE}: noai" in out


def test_many_links_of_a_domain_are_summarised(folder, capsys):
    out = told(capsys, folder, "http-4xx.example")
    assert out.startswith("20 candidates of http-4xx.example:\n  20 http_4xx: not found")
    assert out.count("dropped, http_4xx") == 3
    result = found(capsys, folder, "Host3.example")
    assert result["kind"] == "domain" and result["found"] == sum(result["reasons"].values())
    assert {each["shard"] for each in result["matches"]} == {"s-0", "s-1"}
    assert found(capsys, folder, "4xx.example")["found"] == 0


def test_shards_without_outcomes_are_named(folder, capsys):
    (kept,) = (r for r in pq.read_table(folder / "metadata/metadata_s-1.parquet").to_pylist()[:1])
    ran = said(capsys, "why", str(folder), kept["URL"])
    assert "kept, in images/s-1.tar" in ran.stdout
    assert "1 shard of 2 has no outcomes" in ran.stderr
    assert found(capsys, folder, kept["URL"])["shards_without_outcomes"] == 1


def test_a_table_s_own_columns_may_have_the_names_of_outcomes(folder, tmp_path, capsys):
    copied = shutil.copytree(folder, tmp_path / "set")
    path = copied / "metadata/metadata_s-1.parquet"
    table = pq.read_table(path)
    for name in ("url", "text", "reason"):
        table = table.append_column(name, pa.array(["mine"] * len(table)))
    pq.write_table(table, path)
    pair = table.slice(0, 1).to_pylist()[0]
    (match,) = found(capsys, copied, pair["URL"])["matches"]
    assert (match["reason"], match["url"], match["text"]) == ("kept", pair["URL"], pair["TEXT"])


def test_what_is_unknown_is_said_with_what_is_counted(folder, capsys):
    out = told(capsys, folder, "https://nowhere.example/")
    assert "No candidate of this dataset matches https://nowhere.example/." in out
    assert "no_text" in out and "The links of" in out
    assert "The domain never answered in 1 shard." in told(capsys, folder, "silent.example")
    harm = row(folder, DropReason.MINOR.value)
    assert harm["uid"] is None
    for each in world.some(20)[0]:
        if each.reason is DropReason.MINOR:
            assert found(capsys, folder, each.image.candidate.url)["found"] == 0


@pytest.mark.parametrize(
    "link", ["", "cat", "ftp://a.example/", "http://", "http://[", "a b.c", "é"]
)
def test_what_is_no_link_is_refused_in_one_sentence(folder, capsys, link):
    ran = said(capsys, "why", str(folder), link)
    assert ran.returncode == 2 and "is not an http(s) URL, a domain" in ran.stderr


def test_damage_and_no_dataset_are_one_sentence(folder, tmp_path, capsys):
    ran = said(capsys, "why", str(tmp_path), "a.example")
    assert ran.returncode == 2 and "holds no dataset" in ran.stderr
    world.write(tmp_path)
    (tmp_path / "outcomes/s-0.parquet").write_bytes(b"PAR1 damaged PAR1")
    ran = said(capsys, "why", str(tmp_path), "a.example")
    assert ran.returncode == 1 and "see `cah verify`" in ran.stderr
    (tmp_path / "outcomes/s-0.parquet").unlink()
    assert said(capsys, "why", str(tmp_path), "a.example").returncode == 1
    world.write(tmp_path, first=100, shard="s-1")
    (tmp_path / "shards/s-0.json").unlink()
    for line in (b"[]", b"{}", b"no JSON", b'{"url": 3}', b"\xff"):
        (tmp_path / "optouts/s-1.jsonl").write_bytes(line + b"\n")
        ran = said(capsys, "why", str(tmp_path), "a.example")
        assert ran.returncode in (0, 1) and "Traceback" not in ran.stderr


def test_a_dataset_at_a_url_is_read_there(folder, memory, capsys):  # noqa: F811
    manifests = [read_manifest(folder, id) for id in ("s-0", "s-1")]
    upload_shards(manifests, folder, "memory://why")
    there, here = (found(capsys, place, SHY) for place in ("memory://why", folder))
    assert there == here | {"dataset": "memory://why"} and there["found"] == 1
