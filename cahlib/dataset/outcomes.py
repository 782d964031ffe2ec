"""The outcomes of a shard: one row per candidate, with what became of it.

A row has the candidate as the crawl or the table gave it, so that failed ones can be fetched again,
what its request brought, and its scores if a model judged it. Rows are in the order of the
candidates' positions. Older datasets, and those made with ``--outcomes no``, have none.

Of candidates that were dropped as known or possible harm to minors, and of purged ones, a row has
the position and the reason alone: a dataset must not become a list of links to such images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.core.records import ERASED_REASONS as ERASED_REASONS
from cahlib.core.records import Candidate
from cahlib.dataset.layout import part_path
from cahlib.dataset.manifest import ShardManifest, has_outcomes
from cahlib.dataset.storage.files import files_at

#: The reason of candidates that are pairs of the dataset; the others have a `DropReason`'s value.
KEPT = "kept"

#: Rows read at a time.
_BATCH = 20_000


class OutcomeColumn(NamedTuple):
    """One column of the outcomes."""

    name: str
    type: pa.DataType
    about: str  #: what it holds, for the documentation


# fmt: off
#: The columns that all outcomes have; those that a `Candidate` has too are named as its attributes.
OUTCOME_COLUMNS = (
    OutcomeColumn("position", pa.int32(), "among the candidates of the shard, from 0"),
    OutcomeColumn("reason", pa.string(), "`kept`, or the [drop reason](#drop-reasons)"),
    OutcomeColumn("uid", pa.string(), "the key of the sample, as in the metadata"),
    OutcomeColumn("url", pa.string(), "the link"),
    OutcomeColumn("text", pa.string(), "the caption, as TEXT in the metadata"),
    OutcomeColumn("page", pa.string(), "the page that shows the image, or the table's row"),
    OutcomeColumn("status", pa.int16(), "of the last HTTP response; null if none came"),
    OutcomeColumn("final_url", pa.string(), "after redirects, if it is another than `url`"),
    OutcomeColumn("ms", pa.int32(),
                  "milliseconds that fetching took, with robots.txt, pauses and repetitions"),
    OutcomeColumn("bytes", pa.int64(),
                  "of the response's body; null if it was not read to its end"),
    OutcomeColumn("attempt", pa.int16(), "attempts to fetch it; 0 if nothing was requested"),
    OutcomeColumn("similarity", pa.float64(), "cosine of image and text; null if not judged"),
    OutcomeColumn("nsfw", pa.string(), "the model's guess, as NSFW in the metadata"),
    OutcomeColumn("raw_text", pa.string(), "the text as it stood on the page, where it differs"),
    OutcomeColumn("licence", pa.string(), "as LICENSE in the metadata"),
    OutcomeColumn("language", pa.string(), "of the caption, by CLD2"),
    OutcomeColumn("reliable", pa.bool_(), "whether CLD2 calls the language reliable"),
    OutcomeColumn("language_evidence", pa.string(), "`caption` or `page`"),
    OutcomeColumn("source", pa.string(), "`alt`, `og` or `table`"),
    OutcomeColumn("extra", pa.string(), "JSON of the columns that a table's row carries along"),
)
# fmt: on

#: The columns of the candidate itself, as its attributes; those from a table are JSON beside them.
CANDIDATE_COLUMNS = tuple(
    each.name for each in fields(Candidate) if each.name not in ("position", "extra")
)


def outcome_schema(scores: Sequence[str] = ()) -> pa.Schema:
    """Return the schema, with a column for each score after the columns that all have."""
    own = [(each.name, each.type) for each in OUTCOME_COLUMNS]
    return pa.schema([*own, *((name, pa.float32()) for name in scores)])


def read_outcomes(
    place: str | Path, manifest: ShardManifest, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield a shard's outcomes in batches, all columns or some; nothing if it has none.

    Raise RunError if the file cannot be read, OSError or ValueError if it is damaged.
    """
    if not has_outcomes(manifest):
        return
    path = part_path("outcomes", manifest.shard.id)
    with files_at(manifest.place or place).open(path) as stream:
        file = pq.ParquetFile(stream, pre_buffer=False)
        # without Arrow's threads, as in `cahlib.dataset.metadata`
        yield from file.iter_batches(_BATCH, columns=columns, use_threads=False)


def restore_candidate(row: Mapping[str, Any]) -> Candidate:
    """Return the candidate of a row that is not erased."""
    values = {name: row[name] for name in ("position", *CANDIDATE_COLUMNS)}
    return Candidate(**values, extra=json.loads(row["extra"] or "{}"))


def erase_row(row: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Return a row with nothing but its position and a reason."""
    return {**dict.fromkeys(row), "position": row["position"], "reason": reason}
