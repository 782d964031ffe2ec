"""The rows of a table that make up a shard, as encoded in the shard's URL.

The URL is the table's, with a fragment like that of RFC 7111 for CSV: ``#row=1-10000&…``. It holds
everything that decides which rows are read and how, so a shard is the same on every machine.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

#: The kinds of values that an extra column may have.
COLUMN_KINDS = ("text", "int", "float", "bool")

#: A column to keep: its kind and its name.
ExtraColumn = tuple[str, str]

_FRAGMENT = re.compile(r"row=([0-9]{1,15})-([0-9]{1,15})&byte=([0-9]{1,18})&stamp=([0-9a-f]{8})&")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows:
    """Some rows of a table, and the columns to read."""

    table: str  #: an absolute path, or a URL
    first: int  #: counted from 1
    last: int
    byte: int  #: offset of the first row in the uncompressed file; 0 if unused
    stamp: str  #: 8 hex digits that change with the table
    url_column: str
    text_column: str = ""  #: "" for none
    extras: tuple[ExtraColumn, ...] = ()  #: columns to keep

    @property
    def url(self) -> str:
        """Return the shard's URL; the inverse of `parse_rows_url`."""
        return (
            f"{self.table}#row={self.first}-{self.last}&byte={self.byte}&stamp={self.stamp}&"
            f"{self.columns}"
        )

    @property
    def columns(self) -> str:
        """Return the columns, as encoded in the URL."""
        named = [("url", self.url_column), ("text", self.text_column)]
        return urlencode(named + [("extra", f"{kind}:{name}") for kind, name in self.extras])


def parse_rows_url(url: str) -> TableRows | None:
    """Return the rows that a shard's URL encodes, or None for another file's URL."""
    table, mark, fragment = url.rpartition("#")
    found = _FRAGMENT.match(fragment) if mark else None
    if not found:
        return None
    said = parse_qsl(fragment[found.end() :], keep_blank_values=True)
    named = dict(said)
    extras = [value.partition(":") for key, value in said if key == "extra"]
    return TableRows(
        table=table,
        first=int(found[1]),
        last=int(found[2]),
        byte=int(found[3]),
        stamp=found[4],
        url_column=named.get("url", ""),
        text_column=named.get("text", ""),
        extras=tuple((kind, name) for kind, _, name in extras if kind in COLUMN_KINDS),
    )


def is_shareable(table: str) -> bool:
    """Return whether a table is where other machines read it, and where none has files of its own.

    A tracker must not choose files of its workers.
    """
    return table.startswith(("http://", "https://", "hf://", "s3://", "gs://"))


def cast_value(value: Any, kind: str) -> Any:
    """Return a value converted for a column of a kind; None if it does not fit."""
    if value is None or (kind == "text" and isinstance(value, str)):
        return value
    if kind == "text":
        with suppress(ValueError, TypeError):
            return json.dumps(value, default=str, ensure_ascii=False)
        return None
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind == "int":
        return value if isinstance(value, int) and -(1 << 63) <= value < 1 << 63 else None
    return float(value) if abs(value) < 1e308 else None
