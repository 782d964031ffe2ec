"""The outcomes of a shard's candidates: their schema, and the way back to a candidate."""

import dataclasses
import json

import pyarrow as pa
import pytest

from cahlib.core.records import Candidate, DropReason
from cahlib.dataset.outcomes import (
    ERASED_REASONS,
    OUTCOME_COLUMNS,
    erase_row,
    outcome_schema,
    restore_candidate,
)
from tests.world.judged import judged


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
        left = {name: value for name, value in erase_row(row, reason).items() if value is not None}
        assert left == {"position": 3, "reason": reason.value}
    assert DropReason.PURGED in ERASED_REASONS
