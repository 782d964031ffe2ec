"""The outcomes of a shard's candidates: schema, rows, and what does not belong to its shard."""

import dataclasses
import json
from collections import Counter
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cahlib.core.errors import ShardError
from cahlib.core.records import Candidate, DropReason, Stage, Stats
from cahlib.dataset.maintain.verify_shard import check_outcomes
from cahlib.dataset.outcomes import (
    ERASED_REASONS,
    OUTCOME_COLUMNS,
    erase_row,
    outcome_schema,
    restore_candidate,
)
from cahlib.dataset.write.outcome_writer import Verdicts
from tests.world import judged as world
from tests.world.judged import judged

FETCHED = (Stage.FETCH, Stage.JUDGE)  # the stages that have candidates


@pytest.mark.parametrize("extra", [{}, {"score": 0.5, "title": "Ü", "rank": 3, "good": True}])
def test_a_candidate_comes_back_from_its_row(extra):
    candidate = dataclasses.replace(judged(1).image.candidate, extra=extra)
    given = {each.name: None for each in OUTCOME_COLUMNS} | {"reason": "timeout"}
    given |= dataclasses.asdict(candidate) | {"extra": json.dumps(extra) if extra else None}
    table = pa.Table.from_pylist([given], schema=outcome_schema(["a_score"]))
    assert restore_candidate(table.to_pylist()[0]) == candidate


def test_each_of_a_candidates_fields_has_a_column():
    fields = {each.name for each in dataclasses.fields(Candidate)}
    assert fields <= {each.name for each in OUTCOME_COLUMNS}


def test_an_erased_row_has_nothing_but_position_and_reason():
    row = {"position": 3, "uid": "ab", "url": "http://a/b", "similarity": 0.3, "reason": "kept"}
    for reason in ERASED_REASONS:
        left = {
            name: value for name, value in erase_row(row, reason.value).items() if value is not None
        }
        assert left == {"position": 3, "reason": reason.value}
    assert DropReason.PURGED in ERASED_REASONS


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A shard with its outcomes: the folder, and the manifest."""
    folder = tmp_path_factory.mktemp("outcomes")
    return folder, world.write(folder, first=100)


def rows_of(folder):
    return pq.read_table(folder / "outcomes/s-0.parquet").to_pylist()


def test_there_is_one_row_per_candidate_and_they_give_the_counts(shard):
    folder, manifest = shard
    rows = rows_of(folder)
    stats = manifest.stats
    assert [row["position"] for row in rows] == [*range(stats.entered[Stage.FETCH])]
    reasons = {r.value: n for r, n in stats.dropped.items() if n and r.stage in FETCHED}
    assert Counter(row["reason"] for row in rows) == {"kept": manifest.rows, **reasons}
    metadata = pq.read_table(folder / "metadata/metadata_s-0.parquet").to_pylist()
    kept = {row["uid"]: row for row in rows if row["reason"] == "kept"}
    assert kept.keys() == {row["uid"] for row in metadata}
    for row in metadata:
        mine = kept[row["uid"]]
        assert (mine["url"], mine["text"], mine["page"]) == (row["URL"], row["TEXT"], row["page"])
        for name in ("similarity", *world.SPEC.scores.values()):
            assert mine[name] == row[name]
        assert (mine["status"], mine["attempt"], mine["nsfw"]) == (200, 1, row["NSFW"])


def test_dropped_pairs_have_their_similarity_and_harmful_ones_no_link(shard):
    rows = rows_of(shard[0])
    dissimilar = [row for row in rows if row["reason"] == "dissimilar"]
    assert dissimilar and all(0.1 <= row["similarity"] < 0.3 for row in dissimilar)
    minors = [row for row in rows if row["reason"] == "minor"]
    assert minors and all({*row.values()} == {row["position"], "minor", None} for row in minors)


def test_outcomes_of_other_images_are_refused():
    made = world.placed(world.some(4)[0])
    scraped = world.parcel("s-0", images=4)
    sound = [*world.outcomes(scraped, made)]
    other = dataclasses.replace(sound[0].candidate, uid="0" * 32)
    for wrong in (sound[1:], [sound[0]._replace(candidate=other), *sound[1:]], [*sound, sound[0]]):
        verdicts = Verdicts()
        for each in made:
            verdicts.note(each)
        with pytest.raises(ShardError, match="outcomes"):
            verdicts.parquet(wrong, world.stats_of(made), world.SPEC.scores)


def test_images_that_were_never_scored_have_their_reason():
    (one,) = world.placed([judged(1)])
    scraped, stats = world.parcel("s-0", images=1), Stats()
    stats.drop_unscored(one.image, DropReason.UNREADABLE)
    data = Verdicts().parquet(world.outcomes(scraped, [one]), stats, {})
    row = pq.read_table(BytesIO(data)).to_pylist()[0]
    assert (row["reason"], row["uid"]) == ("unreadable", one.image.candidate.uid)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[:-1], "one row per candidate"),
        (lambda rows: rows[::-1], "one row per candidate"),
        (lambda rows: [{**rows[0], "reason": "timeout"}, *rows[1:]], "the reason kept than"),
        (lambda rows: [{**rows[0], "reason": "dns"}, *rows[1:]], "the reason dns, which"),
        (lambda rows: [{**rows[0], "text": "another"}, *rows[1:]], "the key of row 0"),
        (lambda rows: [{**rows[0], "uid": None}, *rows[1:]], "the key of row 0"),
        (lambda rows: [{**r, "url": "http://a.example/"} for r in rows], "the key of row"),
    ],
)
def test_rows_that_contradict_the_manifest_are_found(shard, change, problem):
    folder, manifest = shard
    table = pq.read_table(folder / "outcomes/s-0.parquet")
    changed = pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema)
    found = [*check_outcomes("x", changed, manifest.stats)]
    assert any(problem in each for each in found)
    assert [*check_outcomes("x", table, manifest.stats)] == []
