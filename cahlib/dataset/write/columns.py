"""The metadata of a pair: which columns there are, and how a judged image fills them.

LAION's columns come first, in LAION's order and types (LAION-400M: 64-bit SAMPLE_ID, 32-bit sizes,
64-bit similarity), so that tools written for it read ours. It does not know files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from cahlib.dataset.layout import CURRENT_LAYOUT
from cahlib.image.perceptual_hash import chroma, phash
from cahlib.records import Judged

#: The metadata of one pair, by column.
Row = dict[str, Any]

_COLUMNS = [
    ("SAMPLE_ID", pa.int64()),
    ("URL", pa.string()),
    ("TEXT", pa.string()),
    ("HEIGHT", pa.int32()),
    ("WIDTH", pa.int32()),
    ("LICENSE", pa.string()),
    ("NSFW", pa.string()),
    ("similarity", pa.float64()),
    ("uid", pa.string()),
    ("page", pa.string()),
    ("language", pa.string()),
    ("reliable", pa.bool_()),
    ("language_evidence", pa.string()),
    ("raw_text", pa.string()),
    ("source", pa.string()),
    ("original_height", pa.int32()),
    ("original_width", pa.int32()),
    ("md5", pa.string()),
    ("sha1", pa.string()),
    ("sha256", pa.string()),
    ("phash", pa.string()),
    ("chroma", pa.string()),
    ("format", pa.string()),
    ("robots", pa.string()),
    ("model", pa.string()),
]

#: The columns that every pair has; its scores come behind them.
COLUMNS = tuple(name for name, _ in _COLUMNS)

#: Those that an older dataset may lack.
OPTIONAL_COLUMNS = ("language_evidence", "chroma")

#: The layout from which on a dataset has a column.
_SINCE = {"chroma": 2}

#: With `--forms images:jpg`, before the scores: the format that a picture was re-encoded from,
#: "" if it is stored as it was.
REENCODED_FROM = "reencoded_from"


def columns_of_layout(layout: int) -> tuple[str, ...]:
    """Return the columns that every pair of a dataset of this layout has."""
    return tuple(name for name in COLUMNS if _SINCE.get(name, 1) <= layout)


def arrow_schema(
    scores: Sequence[str], *, reencoded: bool = False, layout: int = CURRENT_LAYOUT
) -> pa.Schema:
    """Return the columns of a dataset, one for each score, empty where a pair was not given it."""
    own = [each for each in _COLUMNS if each[0] in columns_of_layout(layout)]
    more = [(REENCODED_FROM, pa.string())] if reencoded else []
    return pa.schema(own + more + [(name, pa.float32()) for name in scores])


def make_row(
    judged: Judged, *, model: str, scores: Mapping[str, str], layout: int = CURRENT_LAYOUT
) -> Row:
    """Return the metadata of a judged image; ``scores`` has the column of each score.

    Raise KeyError for a score that has none.
    """
    image, candidate = judged.image, judged.image.candidate
    given = dict(judged.scores)
    values: Row = {
        "SAMPLE_ID": sample_id(candidate.uid),
        "URL": candidate.url,
        "TEXT": candidate.text,
        "HEIGHT": image.height,
        "WIDTH": image.width,
        "LICENSE": candidate.licence,
        "NSFW": judged.nsfw,
        "similarity": judged.similarity,
        "uid": candidate.uid,
        "page": candidate.page,
        "language": candidate.language,
        "reliable": candidate.reliable,
        "language_evidence": candidate.language_evidence,
        "raw_text": candidate.raw_text or "",
        "source": candidate.source,
        "original_height": image.original_height,
        "original_width": image.original_width,
        "md5": image.md5,
        "sha1": image.sha1,
        "sha256": image.sha256,
        "phash": phash(image.data),
        "chroma": chroma(image.data),
        "format": image.format,
        "robots": image.robots,
        "model": model,
        # as precise as its column, so that it is the same in all files
        **{
            column: float(np.float32(given.pop(score))) if score in given else None
            for score, column in scores.items()
        },
    }
    if given:
        raise KeyError(f"scores without a column: {', '.join(given)}")
    lacks = {*COLUMNS} - {*columns_of_layout(layout)}
    return {
        name: _whole(value) if isinstance(value, str) else value
        for name, value in values.items()
        if name not in lacks
    }


def sample_id(uid: str) -> int:
    """LAION's 64-bit key, from the first half of ours."""
    return int.from_bytes(bytes.fromhex(uid[:16]), "big", signed=True)


def fill_nulls(row: Row) -> Row:
    """Return a row as a sample's JSON has it, for `datasets` infers types from the first samples.

    A score that the pair was not given is -1 there, and a text that an older dataset lacks is "".
    """
    return {
        name: value if value is not None else "" if name in COLUMNS else -1.0
        for name, value in row.items()
    }


def canonical_json(values: Any) -> bytes:
    """JSON in UTF-8 with its keys in order: the same values give the same bytes."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def host_of(url: str) -> str:
    """The host that a URL names, "" if it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _whole(text: str) -> str:
    """A text that UTF-8 can hold: headers may carry half characters, as lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
