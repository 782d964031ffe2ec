"""Tables of links as people have them, in every format; the same rows in each."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd

from tests.world.small import CAPTION

Rows = Sequence[Mapping[str, Any]]


def rows(
    count: int, *, first: int = 0, url: str = "url", text: str = "text", **more: Any
) -> list[dict[str, Any]]:
    """Rows with a link and a caption each; ``more`` are columns by what makes a number a cell."""
    return [
        {
            url: f"http://host{number % 7}.example.com/table-{number}.jpg",
            text: CAPTION.format(f'"{number}", in a table,'),
            **{name: cell(number) for name, cell in more.items()},
        }
        for number in range(first, first + count)
    ]


def _csv(separator: str) -> Callable[[Rows], bytes]:
    def written(table: Rows) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, [*table[0]], delimiter=separator)
        writer.writeheader()
        writer.writerows(table)
        return text.getvalue().encode()

    return written


def _jsonl(table: Rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in table)


def _parquet(table: Rows) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([*table]), file, row_group_size=7)
    return file.getvalue()


def _arrow(new: Callable[..., Any]) -> Callable[[Rows], bytes]:
    def written(table: Rows) -> bytes:
        file, whole = io.BytesIO(), pa.Table.from_pylist([*table])
        with new(file, whole.schema) as writer:
            writer.write_table(whole, max_chunksize=7)
        return file.getvalue()

    return written


_PLAIN = {
    "parquet": _parquet,
    "csv": _csv(","),
    "tsv": _csv("\t"),
    "jsonl": _jsonl,
    "feather": _arrow(pa.ipc.new_file),
    "arrow": _arrow(pa.ipc.new_stream),
}

#: How rows become the bytes of a file, by the file's ending.
FORMATS: dict[str, Callable[[Rows], bytes]] = {
    **_PLAIN,
    **{
        f"{ending}.{packing}": lambda table, ending=ending, pack=pack: pack(_PLAIN[ending](table))
        for ending in _PLAIN
        for packing, pack in (("gz", partial(gzip.compress, mtime=0)), ("zst", zstd.compress))
    },
}


def write(path: Path, table: Rows) -> Path:
    """Write rows in the format that a name ends with."""
    path.write_bytes(FORMATS[path.name.partition(".")[2]](table))
    return path


#: Columns of LAION's and DataComp's tables beside links and captions.
LAION = {
    "SAMPLE_ID": lambda n: n * 10**12, "HEIGHT": lambda n: 100, "WIDTH": lambda n: 100 + n,
    "LICENSE": lambda n: "?", "NSFW": lambda n: None if n % 5 == 0 else "UNLIKELY",
    "similarity": lambda n: 0.3 + n / 100,
}  # fmt: skip
DATACOMP = {
    "uid": lambda n: f"{n:032x}", "original_width": int, "sha256": lambda n: f"{n:064x}",
    "face_bboxes": lambda n: [[0.1, 0.2, 0.3, 0.4]] * (n % 3),
}  # fmt: skip


def of_the_field(folder: Path, count: int, *, apart: bool = False) -> list[Path]:
    """Tables as LAION, DataComp and CC12M publish them, with ``count`` rows each.

    Their rows are the same but for the columns, or, ``apart``, all different.
    """
    step = count if apart else 0
    laion = rows(count, url="URL", text="TEXT", **LAION)
    datacomp = rows(count, first=step, **DATACOMP)
    cc12m = rows(count, first=2 * step)
    (folder / "cc12m.tsv").write_text("".join(f"{row['url']}\t{row['text']}\n" for row in cc12m))
    return [
        write(folder / "laion.parquet", laion),
        write(folder / "datacomp.parquet", datacomp),
        folder / "cc12m.tsv",
    ]
