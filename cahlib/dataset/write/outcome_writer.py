"""Write a shard's outcomes: what its parcel says of each candidate, and what the scoring found.

The parcel may come from a stranger: an image whose outcome is missing or belongs to another pair
makes it damaged. The 20,000 rows of a shard take 0.3 s of CPU and 1.5 MB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Set
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.core.errors import ShardError
from cahlib.core.records import ERASED_REASONS, DropReason, Judged, Outcome, Stats
from cahlib.dataset.manifest import ShardManifest
from cahlib.dataset.outcomes import (
    CANDIDATE_COLUMNS,
    KEPT,
    erase_row,
    outcome_schema,
    read_outcomes,
)
from cahlib.dataset.write.columns import Row

#: Rows per batch and row group: those of a shard of half a WAT file.
_ROWS = 20_000

#: Columns of few different values. Dictionaries of the others made a file a tenth larger.
_REPETITIVE = (
    "reason", "status", "attempt", "nsfw", "licence", "language", "language_evidence", "source",
)  # fmt: skip

#: Neighbours begin alike: 75 bytes per row instead of 80.
_ENCODINGS = {
    "position": "DELTA_BINARY_PACKED", "url": "DELTA_BYTE_ARRAY", "page": "DELTA_BYTE_ARRAY",
}  # fmt: skip

#: What is stored of an outcome as it is.
_FETCHED = ("status", "final_url", "ms", "bytes", "attempt")


class _Verdict(NamedTuple):
    """The result of scoring an image."""

    uid: str
    reason: DropReason | None
    similarity: float | None
    nsfw: str
    scores: Mapping[str, float]


class Verdicts:
    """The verdicts on a shard's images, some 400 bytes each, until its outcomes are written."""

    def __init__(self) -> None:
        self._found: dict[int, _Verdict] = {}

    def note(self, judged: Judged) -> None:
        """Remember what became of an image."""
        candidate = judged.image.candidate
        self._found[candidate.position] = _Verdict(
            candidate.uid, judged.reason, judged.similarity, judged.nsfw, judged.scores
        )

    def parquet(
        self, outcomes: Iterable[Outcome], stats: Stats, scores: Mapping[str, str]
    ) -> bytes:
        """Return the file of a shard's outcomes; ``scores`` maps each score to its column.

        ``stats`` is that of the scoring. Raise ShardError for the outcomes of other images.
        """
        file, schema = BytesIO(), outcome_schema([*scores.values()])
        with _open_outcomes(file, schema) as writer:
            every = iter(outcomes)
            while batch := [*islice(every, _ROWS)]:
                verdicts = [self._verdict(each, stats) for each in batch]
                columns = dict(_columns(batch, verdicts, scores))
                arrays = [pa.array(columns[field.name], field.type) for field in schema]
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        if self._found:
            raise ShardError("The parcel lacks the outcomes of some of its images.")
        return file.getvalue()

    def _verdict(self, outcome: Outcome, stats: Stats) -> _Verdict:
        if outcome.reason:
            return _Verdict("", outcome.reason, None, "", {})
        found = self._found.pop(outcome.position, None)
        uid = outcome.candidate.uid if outcome.candidate else ""
        if found and found.uid == uid:
            return found
        if found is None and (reason := stats.unscored.get(outcome.position)):
            return _Verdict(uid, reason, None, "", {})
        raise ShardError("The parcel has outcomes of other images than it has.")


def rewritten_outcomes(
    folder: Path, manifest: ShardManifest, removed: Mapping[str, DropReason], erased: Set[int]
) -> bytes:
    """Return the file of a shard's outcomes after pairs were removed, by uid.

    Rows at ``erased`` positions, which are no pairs, keep only their reason.
    """
    file = BytesIO()
    batches = read_outcomes(folder, manifest)
    first = next(batches)
    with _open_outcomes(file, first.schema) as writer:
        for batch in chain([first], batches):
            rows = batch.to_pylist()
            changed = [_changed(row, removed, erased) for row in rows]
            if changed != rows:
                batch = pa.RecordBatch.from_pylist(changed, schema=first.schema)
            writer.write_batch(batch)
    return file.getvalue()


def _changed(row: Row, removed: Mapping[str, DropReason], erased: Set[int]) -> Row:
    reason = removed.get(row["uid"]) if row["reason"] == KEPT else None
    if reason in ERASED_REASONS:
        return erase_row(row, reason.value)
    row = {**row, "reason": reason.value} if reason else row
    return erase_row(row, row["reason"]) if row["position"] in erased else row


def _open_outcomes(file: BytesIO, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        compression_level=9,
        use_dictionary=[*_REPETITIVE],
        column_encoding=_ENCODINGS,
    )


def _columns(
    outcomes: list[Outcome], verdicts: list[_Verdict], scores: Mapping[str, str]
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the values of each column, null where the row must not lead to its image."""
    reasons = [each.reason for each in verdicts]
    shown = [reason not in ERASED_REASONS for reason in reasons]
    candidates = [o.candidate if show else None for o, show in zip(outcomes, shown, strict=True)]
    yield "position", [each.position for each in outcomes]
    yield "reason", [reason.value if reason else KEPT for reason in reasons]
    for name in CANDIDATE_COLUMNS:
        yield name, [getattr(each, name) if each else None for each in candidates]
    yield (
        "extra",
        [
            json.dumps(dict(each.extra), ensure_ascii=False) if each and each.extra else None
            for each in candidates
        ],
    )
    rows = [*zip(outcomes, verdicts, shown, strict=True)]
    for name in _FETCHED:
        yield name, [getattr(outcome, name) if show else None for outcome, _, show in rows]
    yield "similarity", [verdict.similarity if show else None for _, verdict, show in rows]
    yield "nsfw", [verdict.nsfw or None if show else None for _, verdict, show in rows]
    for score, column in scores.items():
        yield column, [verdict.scores.get(score) if show else None for _, verdict, show in rows]
