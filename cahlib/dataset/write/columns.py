"""The columns of the metadata, and how a scored image becomes a row and is restored from it.

LAION's columns come first, in LAION's order and types (LAION-400M: 64-bit SAMPLE_ID, 32-bit sizes,
64-bit similarity), so that tools written for it read ours. Nothing here knows files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cahlib.core.errors import ConfigError
from cahlib.core.records import Candidate, Image, Judged
from cahlib.core.table_rows import ExtraColumn, cast_value
from cahlib.dataset.layout import CURRENT_LAYOUT

#: The metadata of one pair, by column.
Row = dict[str, Any]


class Column(NamedTuple):
    """One column of the metadata."""

    name: str
    type: pa.DataType
    #: the attribute of a `Judged` that it stores, or how its value is computed from one; None if
    #: the value comes from elsewhere
    source: str | Callable[[Judged], Any] | None
    about: str  #: what it holds, for the documentation
    since: int = 1  #: the first layout that has it
    optional: bool = False  #: an older dataset may lack it


def sample_id(uid: str) -> int:
    """Return LAION's 64-bit key: the first half of ours."""
    return int.from_bytes(bytes.fromhex(uid[:16]), "big", signed=True)


#: Schema, rows, and the way back from a row to its pair all follow from this table.
# fmt: off
ALL_COLUMNS = [
    Column("SAMPLE_ID", pa.int64(), lambda pair: sample_id(pair.image.candidate.uid),
           "LAION's 64-bit key: the first 16 digits of `uid`, as a signed number"),
    Column("URL", pa.string(), "image.candidate.url", "the image"),
    Column("TEXT", pa.string(), "image.candidate.text",
           "the caption: the page's alt text, repaired, white space normalised"),
    Column("HEIGHT", pa.int32(), "image.height", "pixels, as stored"),
    Column("WIDTH", pa.int32(), "image.width", "pixels, as stored"),
    Column("LICENSE", pa.string(), "image.candidate.licence",
           "the Creative Commons link of the page, else `?`; a hint, not an assurance"),
    Column("NSFW", pa.string(), "nsfw",
           "the model's guess: `UNLIKELY`, `UNSURE` or `NSFW`; empty without a model"),
    Column("similarity", pa.float64(), "similarity",
           "cosine of image and text, -1 to 1; null if no model judged"),
    Column("uid", pa.string(), "image.candidate.uid",
           "hex md5 of URL + TEXT: the key of the sample in every file"),
    Column("page", pa.string(), "image.candidate.page",
           "the page that shows the image, or the table's row"),
    Column("language", pa.string(), "image.candidate.language",
           "of the caption, by CLD2: an ISO 639 code, `un` if unknown"),
    Column("reliable", pa.bool_(), "image.candidate.reliable",
           "whether CLD2 calls the language reliable"),
    Column("language_evidence", pa.string(), "image.candidate.language_evidence",
           "what showed the language: the `caption` alone, or its `page`", optional=True),
    Column("raw_text", pa.string(), "image.candidate.raw_text",
           "the text as it stood on the page, where that differs from TEXT"),
    Column("source", pa.string(), "image.candidate.source",
           "`alt`, `og` for og:image with og:description, or `table`"),
    Column("original_height", pa.int32(), "image.original_height", "pixels, as served"),
    Column("original_width", pa.int32(), "image.original_width", "pixels, as served"),
    Column("md5", pa.string(), "image.md5", "hex, of the bytes as served"),
    Column("sha1", pa.string(), "image.sha1", "hex, of the bytes as served"),
    Column("sha256", pa.string(), "image.sha256", "hex, of the bytes as served"),
    Column("phash", pa.string(), "image.phash",
           "perceptual hash, 16 hex digits, as ImageHash's `phash`"),
    Column("chroma", pa.string(), "image.chroma",
           "mean colours of the four quarters, compared where perceptual hashes are alike",
           since=2, optional=True),
    Column("format", pa.string(), "image.format",
           "of the stored image: `jpg`, `png`, `webp` or `avif`"),
    Column("robots", pa.string(), "image.robots", "what the owner said by headers, a line each"),
    Column("model", pa.string(), None, "the model that scored the pair"),
]
# fmt: on

#: The columns that every pair has; its scores come after them.
COLUMNS = tuple(each.name for each in ALL_COLUMNS)

#: The columns of texts among them, and those of numbers that may be null.
_TEXTS = {each.name for each in ALL_COLUMNS if each.type == pa.string()}
_NUMBERS = {each.name for each in ALL_COLUMNS if each.type == pa.float64()}

#: Columns that an older dataset may lack.
OPTIONAL_COLUMNS = tuple(each.name for each in ALL_COLUMNS if each.optional)

#: How the value of each stored attribute is read from a pair.
_READERS: dict[str, Callable[[Judged], Any]] = {
    each.name: attrgetter(each.source) if isinstance(each.source, str) else each.source
    for each in ALL_COLUMNS
    if each.source is not None
}

#: The types of the columns that a table's rows carry along, by kind.
_EXTRA_TYPES = {
    "text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(),
}  # fmt: skip

#: Names that a column carried along from a table must not have.
TAKEN = (*COLUMNS, "reencoded_from")

#: With `--forms images:jpg`, before the scores: the format that a picture was re-encoded from,
#: "" if it is stored as it was.
REENCODED_FROM = "reencoded_from"


def columns_of_layout(layout: int) -> tuple[str, ...]:
    """Return the columns that every pair of a dataset of this layout has."""
    return tuple(each.name for each in ALL_COLUMNS if each.since <= layout)


def layout_by_columns(names: Sequence[str]) -> int:
    """Return the layout of a table with these columns."""
    return max((each.since for each in ALL_COLUMNS if each.name in names), default=1)


def arrow_schema(
    scores: Sequence[str],
    *,
    extras: Sequence[ExtraColumn] = (),
    reencoded: bool = False,
    layout: int = CURRENT_LAYOUT,
) -> pa.Schema:
    """Return a dataset's schema, one column per score; pairs without that score have null.

    Raise ConfigError if an extra column has the name of a score.
    """
    own = [(each.name, each.type) for each in ALL_COLUMNS if each.since <= layout]
    more = [(REENCODED_FROM, pa.string())] if reencoded else []
    for kind, name in extras:
        if name in scores:
            raise ConfigError(f"extra_columns: {name} is a column of scores; leave it out.")
        more.append((name, _EXTRA_TYPES[kind]))
    return pa.schema(own + more + [(name, pa.float32()) for name in scores])


def make_row(
    judged: Judged,
    *,
    model: str,
    scores: Mapping[str, str],
    extras: Sequence[ExtraColumn] = (),
    layout: int = CURRENT_LAYOUT,
) -> Row:
    """Return the metadata of a scored image; ``scores`` maps each score to its column.

    Raise KeyError for a score without a column.
    """
    values: Row = {
        name: _valid(_READERS[name](judged) if name in _READERS else model, name in _NUMBERS)
        for name in columns_of_layout(layout)
    }
    carried = judged.image.candidate.extra
    for kind, name in extras:  # another machine may have sent anything
        value = cast_value(carried.get(name), kind)
        values[name] = _valid(value) if kind == "text" else value
    given = dict(judged.scores)
    for score, column in scores.items():
        # rounded as its column is, so that all files have the same value
        values[column] = float(np.float32(given.pop(score))) if score in given else None
    if given:
        raise KeyError(f"scores without a column: {', '.join(given)}")
    return values


def restore_pair(
    row: Row,
    *,
    data: bytes,
    image_embedding: Any,
    text_embedding: Any,
    extras: Sequence[ExtraColumn] = (),
) -> Judged:
    """Return the kept pair of which `make_row` made this row, but for its position."""
    carried = {name: row[name] for _, name in extras}
    parts: dict[str, dict[str, Any]] = {
        "image.candidate": {"position": 0, "extra": carried},
        "image": {"data": data},
        "": {"image_embedding": image_embedding, "text_embedding": text_embedding, "reason": None},
    }
    for each in ALL_COLUMNS:
        if isinstance(each.source, str) and not (each.optional and row.get(each.name) is None):
            owner, _, attribute = each.source.rpartition(".")
            parts[owner][attribute] = row[each.name]
    candidate = Candidate(**parts["image.candidate"])
    scores = {name: row[name] for name in row if name not in (*COLUMNS, REENCODED_FROM, *carried)}
    return Judged(image=Image(candidate=candidate, **parts["image"]), scores=scores, **parts[""])


def fill_nulls(row: Row) -> Row:
    """Return a row as a sample's JSON has it: `datasets` infers types from the first samples.

    A missing score is -1 there, and a text that an older dataset lacks is "".
    """
    return {
        name: value if value is not None else "" if name in _TEXTS else -1.0
        for name, value in row.items()
    }


def canonical_json(values: Any) -> bytes:
    """Return JSON in UTF-8 with sorted keys: the same values give the same bytes."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _valid(value: Any, is_number: bool = False) -> Any:
    """Return a value as its column can hold it: headers may carry lone surrogates."""
    if value is None:
        return None if is_number else ""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "replace").decode()
    return value
