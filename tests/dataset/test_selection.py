"""Pairs that a rule chooses: the right ones, in all files, whatever interrupts it."""

import json
import os
import re
import shutil
from dataclasses import replace

import duckdb
import numpy as np
import pytest

from cahlib.commands import select
from cahlib.commands.cli import main
from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError
from cahlib.core.lock import lock_dataset
from cahlib.core.records import DropReason, Stage
from cahlib.dataset.layout import FOLDERS, MANIFESTS
from cahlib.dataset.maintain.apply_selection import apply_plan, dataset_digest, plan_selection
from cahlib.dataset.maintain.purge import CHANGES_FILE
from cahlib.dataset.maintain.ready_rules import READY_RULES, ready_rule
from cahlib.dataset.maintain.selection import SelectionRule, select_pairs
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.query import PairQuery
from cahlib.dataset.show.pages import write_pages
from tests.world.command import said
from tests.world.crashes import before_each_renaming
from tests.world.judged import SPEC, judged, with_forms, write, write_these

WHERE = "similarity > 0.4 and WIDTH > 100"


def made(folder, shards=3, spec=SPEC):
    for number in range(shards):
        write(folder, first=1000 * number, shard=f"s-{number}", spec=spec)
    write_pages(folder, {})
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return made(tmp_path_factory.mktemp("original") / "dataset")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two shards of five pairs each."""
    folder = tmp_path_factory.mktemp("small") / "dataset"
    for number in range(2):
        write(folder, 10, first=1000 * number, shard=f"s-{number}", spec=with_forms("embeddings"))
    write_pages(folder, {})
    return folder


@pytest.fixture
def dataset(original, tmp_path):
    return shutil.copytree(original, tmp_path / "dataset")


def files(folder):
    """All files of the shards but the manifests, which have times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for each in set(FOLDERS) - {MANIFESTS}
        for path in folder.glob(f"{each}/*")
    }


def uids(folder, where="true", more=""):
    """The keys of pairs, by DuckDB alone."""
    files = f"{folder}/metadata/*.parquet"
    found = duckdb.sql(f"SELECT uid FROM read_parquet('{files}') WHERE {where} {more}").fetchall()
    return [uid for (uid,) in found]


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        (SelectionRule(where=(WHERE, "reliable")), ""),
        (SelectionRule(where=(WHERE,), top="7"), "ORDER BY similarity DESC LIMIT 7"),
        (
            SelectionRule(where=(WHERE,), top="30%", by="WIDTH * 1.0 / HEIGHT"),
            "QUALIFY rank() OVER (ORDER BY WIDTH * 1.0 / HEIGHT DESC) "
            "<= ceil(0.3 * count(*) OVER ())",
        ),
        (
            SelectionRule(where=(WHERE,), caps=(("format", 2),)),
            "QUALIFY rank() OVER (PARTITION BY format ORDER BY similarity DESC) <= 2",
        ),
        (
            SelectionRule(where=(WHERE,), caps=(("NSFW", 9),), top="50%", per="format"),
            "AND uid IN (SELECT uid FROM (SELECT * FROM read_parquet('{files}') WHERE {where} "
            "QUALIFY rank() OVER (PARTITION BY NSFW ORDER BY similarity DESC) <= 9) "
            "QUALIFY rank() OVER (PARTITION BY format ORDER BY similarity DESC) "
            "<= ceil(count(*) OVER (PARTITION BY format) / 2))",
        ),
    ],
)  # fmt: skip
def test_a_rule_chooses_what_an_independent_query_finds(original, rule, more):
    files = f"{original}/metadata/*.parquet"
    wanted = uids(original, WHERE, more.replace("{files}", files).replace("{where}", WHERE))
    pairs = PairQuery(original)
    found = select_pairs(pairs, rule)
    rows = pairs.read(np.flatnonzero(found.stays), ["uid"])
    assert {row["uid"] for row in rows} == {*wanted} and found.count == len(wanted) > 0
    assert found.steps[-1][1] == found.count
    for groups in (found.languages(), found.domains(), found.sides()):
        assert sum(each.pairs for each in groups) == pairs.rows
        assert sum(each.stay for each in groups) == found.count


def test_the_pairs_at_the_cut_are_the_nearest(original):
    pairs = PairQuery(original)
    found = select_pairs(pairs, SelectionRule(top="20%"))
    similarity = np.sort(pairs.numbers("similarity"))[::-1]
    lowest, highest = found.edge(3)
    assert found.values[lowest].tolist() == similarity[8:5:-1].tolist()
    assert found.values[highest].tolist() == similarity[9:12].tolist()
    assert found.cut() == similarity[8]


def test_a_new_dataset_has_what_the_rule_chooses(dataset, tmp_path, capsys):
    ran = said(capsys, "select", dataset, "--where", WHERE, "--into", tmp_path / "new", "--json")
    told = json.loads(ran.stdout)
    wanted = uids(dataset, WHERE)
    assert uids(tmp_path / "new") == wanted and told["stay"] == len(wanted)
    assert list(verify(tmp_path / "new")) == list(verify(dataset)) == []
    before, after = (
        sum((each.stats for each in read_manifests(folder)), start=type(each.stats)())
        for folder in (dataset, tmp_path / "new")
        for each in [next(read_manifests(folder))]
    )
    assert after.dropped[DropReason.DESELECTED] == before.left[Stage.JUDGE] - len(wanted)
    assert after.unaccounted(Stage.JUDGE) == 0
    lines = [json.loads(each) for each in (tmp_path / "new" / CHANGES_FILE).read_text().split("\n")
             if each]  # fmt: skip
    assert [each["shard"] for each in lines] == ["s-0", "s-1", "s-2"]
    assert lines[0]["rule"]["where"] == [WHERE]
    assert "was not selected" in (tmp_path / "new/report.html").read_text()
    assert {"00000.tar", "00001.tar", "00002.tar"} <= {
        path.name for path in (tmp_path / "new/images").iterdir()
    }
    before = files(tmp_path / "new")
    ran = said(capsys, "select", dataset, "--where", WHERE, "--into", tmp_path / "new")
    assert (ran.returncode, "is in" in ran.stdout) == (0, True)
    assert files(tmp_path / "new") == before


@pytest.mark.parametrize("forms", [(), ("embeddings",), ("tfrecords",), ("images:jpg",)])
def test_in_place_is_the_same_as_a_new_dataset(tmp_path, forms):
    dataset = made(tmp_path / "dataset", 2, with_forms(*forms))
    rule = ["--where", WHERE, "--max-per-domain", "2", "--top", "90%"]
    assert main(["select", str(dataset), *rule, "--into", str(tmp_path / "new")]) == 0
    assert main(["select", str(dataset), *rule, "--apply"]) == 0
    assert files(dataset) == files(tmp_path / "new")
    assert list(verify(dataset)) == []
    assert main(["select", str(dataset), *rule, "--apply"]) == 0  # not a share of the share
    assert files(dataset) == files(tmp_path / "new")
    write(dataset, first=9000, shard="s-9", spec=with_forms(*forms))
    assert main(["select", str(dataset), *rule, "--apply"]) == 0  # but of what is new
    assert files(dataset) != files(tmp_path / "new")


@pytest.mark.parametrize("into", [False, True])
def test_a_selection_that_is_killed_is_finished_by_the_next(small, tmp_path, into):
    """Killed before each fourth renaming; needs processes that die."""
    folders = [tmp_path / str(number) / "dataset" for number in range(6)]
    for folder in folders:
        shutil.copytree(small, folder)
    more = '"--into", str(folder.parent / "new")' if into else '"--apply"'
    work = f'main(["select", str(folder), "--top", "40%", {more}, "-q"])'
    imports = "from cahlib.commands.cli import main, _parser; _parser()\n"
    imports += "from cahlib.dataset.maintain import apply_selection"  # once, not in each
    died = before_each_renaming(imports, work, folders, stride=4)
    assert [*died].count("9") >= 5
    ends = []
    for folder in folders:
        arguments = ["--into", str(folder.parent / "new")] if into else ["--apply"]
        assert main(["select", str(folder), "--top", "40%", *arguments, "-q"]) == 0
        end = folder.parent / "new" if into else folder
        assert list(verify(end)) == [] and len(uids(end)) == 4
        ends.append(files(end))
        lines = [json.loads(each) for each in (end / CHANGES_FILE).read_text().splitlines()]
        assert [each["shard"] for each in lines] == ["s-0", "s-1"]  # each once
    assert all(each == ends[0] for each in ends)


def test_another_rule_waits_for_one_that_was_interrupted(small, tmp_path, capsys):
    folder = shutil.copytree(small, tmp_path / "dataset")
    begun = select_pairs(PairQuery(folder), SelectionRule(top="40%"))
    changes = apply_plan(folder, plan_selection(begun, dataset_digest(folder)))
    next(changes)
    changes.close()
    ran = said(capsys, "select", folder, "--top", "50%", "--apply")
    assert ran.returncode == 2 and re.search(r"finish it first, .*\"top\": \"40%\"", ran.stderr)
    ran = said(capsys, "select", folder, "--top", "40%", "--apply")
    assert ran.returncode == 0 and "was interrupted, and is continued" in ran.stdout
    assert len(uids(folder)) == 4
    assert main(["select", str(folder), "--top", "50%", "--apply"]) == 0
    assert len(uids(folder)) == 2


def test_shards_that_come_before_a_selection_is_finished_are_chosen_from_by_the_next(
    small, tmp_path, capsys
):
    folder = shutil.copytree(small, tmp_path / "dataset")
    begun = select_pairs(PairQuery(folder), SelectionRule(where=(WHERE,)))
    changes = apply_plan(folder, plan_selection(begun, dataset_digest(folder)))
    next(changes)
    changes.close()
    write(folder, 10, first=5000, shard="s-5", spec=with_forms("embeddings"))
    wanted, arguments = uids(folder, WHERE), ("select", folder, "--where", WHERE, "--apply")
    ran = said(capsys, *arguments)
    assert "1 shard came after this selection had begun; run it again" in ran.stderr
    assert wanted != uids(folder)
    assert said(capsys, *arguments).returncode == 0
    assert wanted == uids(folder) and list(verify(folder)) == []
    assert "was applied already" in said(capsys, *arguments).stdout


def test_from_and_to_a_url(dataset, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    there = (tmp_path / "there").as_uri()
    shutil.copytree(dataset, tmp_path / "source", ignore=shutil.ignore_patterns("run"))
    source = (tmp_path / "source").as_uri()
    assert main(["select", source, "--where", WHERE, "--into", there]) == 0
    assert list(verify(there)) == [] and uids(tmp_path / "there") == uids(dataset, WHERE)
    # a folder that a URL names needs no other
    assert os.listdir(tmp_path / "here") == ["source-selection.html"]


def test_a_copy_keeps_the_job_of_its_run(dataset, tmp_path):
    replace_settings(Job(), output=str(dataset), threshold=0.2).store(dataset / "run/job.json")
    assert main(["select", str(dataset), "--where", WHERE, "--into", str(tmp_path / "new")]) == 0
    job = Job.stored(tmp_path / "new/run/job.json")
    assert (job.output.folder, job.judge.threshold) == (tmp_path / "new", 0.2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give a rule with --where"),
        (["--where", ""], "where: the expression is empty"),
        (["--where", "similarity >"], "is not valid SQL: syntax error at its end"),
        (["--where", "similarty > 0.3"], "no column similarty; did you mean similarity"),
        (["--where", "exists (from read_csv('/etc/passwd'))"], "has a subquery"),
        (["--top", "0%"], "top: '0%' is not a share or a number of pairs"),
        (["--top", "101%"], "top: '101%' is not"),
        (["--top", "1.5"], "top: '1.5' is not"),
        (["--top", "-5"], "top: '-5' is not"),
        (["--top", "50%", "--by", "language"], 'by: `"language"` is not a number but'),
        (["--top", "50%", "--by", "nothing"], "by: there is no column nothing"),
        (["--top", "50%", "--by", "clip_ViT-tiny_none_age_minor * NULL"], "no column clip_ViT"),
        (["--top", "5", "--per", "langauge"], "per: there is no column langauge; did you mean"),
        (["--where", "true", "--per", "language"], "per: it applies --top to each group"),
        (["--max-per-domain", "0"], "max-per: give at least 1 pair for each domain, not 0"),
        (["--max-per", "domain", "x"], "max-per: 'x' is not a number of pairs for each domain"),
        (["--rule", "laion400m"], "rule: laion400m needs the similarity by ViT-B-32/openai"),
        (["--rule", "laion400"], "did you mean laion400m"),
        (["--where", "similarity > 4", "--apply"], "no pair would stay"),
        (["--where", "similarity > 4", "--into", "new"], "no pair would stay"),
        (["--where", "true", "--apply", "--into", "new"], "--into or --apply, not both"),
        (["--where", "true", "--into", "."], "has files already"),
        (["--where", "true", "--into", "dataset"], "is the dataset itself"),
        (["--where", "true", "--into", "dataset/new"], "is inside the dataset"),
        (["--where", "true", "--into", "file"], "is not a folder"),
        (["--where", "true", "--into", ""], "into: give a folder or a URL"),
        (["--where", "true", "--into", "nosuch://x/y"], "into: nosuch://x/y cannot be used"),
        (["--where", "true", "--into", "file/x"], "is not a folder; choose a new one"),
        (["--where", "true", "--into", "file://HERE/file"], "is not a folder"),
        (["--where", "true", "--into", "file://HERE/dataset"], "is the dataset itself"),
        (["--where", "true", "--into", "file://HERE/dataset/new"], "is inside the dataset"),
        (["--where", "true", "--into", "FILE://HERE"], "has files already"),
        (
            ["--where", "true", "--into", "https://127.0.0.1:1/x"],
            "cah: into: https://127.0.0.1:1/x",
        ),
        (["--where", "true", "--into", "memory://x/full"], "run it in another folder"),
    ],
)
def test_mistakes_are_said_in_one_sentence(
    dataset, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    arguments = [each.replace("HERE", str(tmp_path)) for each in arguments]
    try:
        code = main(["select", "dataset", *arguments, "-q"])
    except SystemExit as ended:
        code = ended.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and lines[0].startswith("cah: ") and sentence in lines[0]
    left = {*sorted(tmp_path.rglob("*"))} - {*before}
    assert {path.name for path in left} <= {"run", "lock", "dataset-selection.html"}


def test_nothing_is_made_in_a_folder_that_is_no_dataset(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for more in (["--into", tmp_path / "new"], ["--apply"], []):
        ran = said(capsys, "select", tmp_path / "empty", "--top", "5", *more)
        assert ran.returncode == 2 and "holds no dataset" in ran.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_dataset_in_use_is_refused(dataset, tmp_path, capsys):
    with lock_dataset(dataset):
        for more in (["--apply"], ["--into", str(tmp_path / "new")]):
            ran = said(capsys, "select", dataset, "--where", WHERE, *more)
            assert ran.returncode == 2 and "another command is writing to" in ran.stderr
        ran = said(capsys, "select", dataset, "--where", WHERE)  # to look is harmless
        assert ran.returncode == 0 and "Another command is writing" in ran.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["metadata/metadata_s-1.parquet", "shards/s-1.json"])
def test_a_damaged_shard_ends_it(dataset, tmp_path, capsys, name):
    path = dataset / name
    path.write_bytes(path.read_bytes()[:1000])
    for more in (["--apply"], ["--into", str(tmp_path / "new")], []):
        ran = said(capsys, "select", dataset, "--where", WHERE, *more)
        assert ran.returncode == 1 and "cah verify" in ran.stderr, ran


@pytest.mark.parametrize(
    "name", ["images/00001.tar", "img_emb/img_emb_s-1.npy", "optouts/s-1.jsonl"]
)
def test_a_flipped_bit_gets_no_new_checksum(dataset, tmp_path, capsys, name):
    damaged = bytearray((dataset / name).read_bytes())
    damaged[len(damaged) * 3 // 4] ^= 1
    (dataset / name).write_bytes(damaged)
    for more in (["--apply"], ["--into", str(tmp_path / "new")]):
        ran = said(capsys, "select", dataset, "--where", WHERE, *more)
        assert ran.returncode == 1 and f"({name} was changed after it was written" in ran.stderr
    assert (dataset / name).read_bytes() == damaged


def test_a_new_dataset_of_another_state_is_not_continued(dataset, tmp_path, capsys):
    arguments = ["select", dataset, "--where", WHERE, "--into", tmp_path / "new"]
    assert said(capsys, *arguments).returncode == 0
    (tmp_path / "uids").write_text(uids(tmp_path / "new")[0])
    assert said(capsys, "purge", dataset, "--uids", tmp_path / "uids").returncode == 0
    ran = said(capsys, *arguments)
    assert ran.returncode == 2 and "was made from another state of" in ran.stderr


def test_a_page_shows_both_sides_of_the_cut(tmp_path, capsys):
    hostile = {"text": "<script>alert(1)</script> \u202e", "url": "javascript:alert(1)//x"}
    images = [judged(n, similarity=0.3 + n / 100, nsfw="UNSURE" if n == 9 else "UNLIKELY")
              for n in range(1, 20)]  # fmt: skip
    write_these(tmp_path / "dataset", [*images, judged(99, similarity=0.405, **hostile)])
    page = tmp_path / "dataset-selection.html"
    ran = said(capsys, "select", tmp_path / "dataset", "--top", "50%", "--json")
    assert json.loads(ran.stdout)["page"] == str(page)
    text = page.read_text()
    assert text.count("data:image/jpeg") == 20 and text.count("UNSURE, blurred") == 1
    assert "10 of 20 pairs stay" in text and text.index("0.405<") < text.index("0.41<")
    assert "<script>" not in text and 'href="javascript' not in text
    assert text.count("https://host") >= 19
    page.write_text("mine")
    ran = said(capsys, "select", tmp_path / "dataset", "--top", "50%")
    assert ran.returncode == 0 and "is not a page of cahlib" in ran.stderr
    ran = said(capsys, "select", tmp_path / "dataset", "--top", "50%", "--page", page)
    assert (ran.returncode, page.read_text()) == (2, "mine")


def test_a_page_without_pictures_or_scores_is_made(tmp_path, capsys):
    unjudged = [replace(judged(n), similarity=None, nsfw="", scores={}) for n in range(9)]
    write_these(tmp_path / "dataset", unjudged, spec=with_forms())
    ran = said(capsys, "select", tmp_path / "dataset", "--max-per-domain", "1")
    assert ran.returncode == 2 and "by: no pair has a value in similarity" in ran.stderr
    arguments = ["select", tmp_path / "dataset", "--max-per-domain", "1", "--by", "WIDTH"]
    assert said(capsys, *arguments, "--page", tmp_path / "a.html").returncode == 0
    assert (tmp_path / "a.html").read_text().count("no picture") == 9
    assert said(capsys, "select", tmp_path / "dataset", "--where", "WIDTH > 100").returncode == 0


def test_ready_rules_are_those_of_the_command():
    assert (*READY_RULES,) == select.RULES


def test_ready_rules_use_the_scores_of_their_models(original):
    pairs = PairQuery(original)
    basic, notes = ready_rule("datacomp-basic", pairs.columns)
    wanted = uids(
        original,
        "language = 'en' and length(TEXT) > 5 and regexp_matches(TEXT, '\\S+\\s+\\S+\\s+\\S') "
        "and least(original_width, original_height) >= 200 "
        "and original_width / original_height between 0.333333333333 and 3",
    )
    assert select_pairs(pairs, basic).count == len(wanted) > 0 and len(notes) == 1
    columns = [*pairs.columns, "clip_ViT-B-32_openai_similarity", "clip_ViT-L-14_openai_similarity"]
    rule, notes = ready_rule("laion400m", columns)
    assert rule.where == ("length(TEXT) >= 5", '"clip_ViT-B-32_openai_similarity" >= 0.3')
    assert "5 kB" in notes[0]
    rule, notes = ready_rule("laion5b", columns)
    assert (
        "NULL >= 0.26" in rule.where[1] and "pairs in other languages than English go" in notes[-1]
    )
    rule, _ = ready_rule("datacomp-clip30", columns)
    assert (rule.top, rule.by) == ("30%", "clip_ViT-L-14_openai_similarity")
    with pytest.raises(ConfigError, match="needs the similarity by ViT-L-14/openai"):
        ready_rule("datacomp-clip30", pairs.columns)
