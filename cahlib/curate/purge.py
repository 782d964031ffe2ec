"""Takes pairs out of a dataset: every file of a shard is written anew without them, then its seal.

What is new waits under names of its own until the whole shard is on disk; its new seal, written
last, is the word that it may take the old one's place. So a purge that is interrupted has either
not happened to a shard, or `purge` ends it at its next start. It does not know why pairs must go.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow.parquet as pq

from cahlib.curate import card, report, seal
from cahlib.curate.dataset import FOLDERS, LAYOUT
from cahlib.curate.formats import Sink, Stored, Tar, disk
from cahlib.curate.gallery import Shown
from cahlib.curate.rows import Row, as_json, host
from cahlib.curate.seal import Sealed
from cahlib.curate.tfrecord import example, frame, records
from cahlib.errors import ConfigError
from cahlib.records import Reason, Stage

#: What the names of new files end with until their shard is whole.
_NEW = ".purged"

#: Where it is written what was taken out, a line a shard.
LOG = "purged.jsonl"

#: Hosts that a seal names.
_DOMAINS = 100


def purge(
    folder: Path,
    doomed: Callable[[Row], bool],
    *,
    hide: Callable[[Shown], bool] = lambda shown: False,
    reason: Reason = Reason.PURGED,
) -> dict[str, int]:
    """Take out the pairs whose row is ``doomed``; the number of them by shard.

    ``hide`` tells which of the small pictures in seals must go beside those of such pairs. Raises
    ConfigError if there is no dataset here, or its files are elsewhere; RunError for damage.
    """
    with _alone(folder):
        recover(folder)
        sealed = list(seal.seals(folder))
        if not sealed:
            raise ConfigError(f"{folder} holds no dataset: there is no shard's seal in it.")
        for each in sealed:
            if each.place:
                raise ConfigError(
                    f"{folder}: the files of shard {each.shard.id} are at {each.place}; "
                    "fetch the dataset, and take the pairs out there."
                )
        taken: dict[str, int] = {}
        for each in sealed:
            if number := _shard(folder, each, doomed, hide, reason):
                taken[each.shard.id] = number
        _tell(folder)
    return taken


def recover(folder: Path) -> None:
    """End what an interrupted purge had decided, and remove what it had only begun."""
    with disk(folder):
        for path in (folder / seal.FOLDER).glob(f"*.json{_NEW}"):
            _take_place(folder, path)
        for each in FOLDERS:
            for path in (folder / each).glob(f"*{_NEW}*"):
                path.unlink()


def _shard(
    folder: Path,
    sealed: Sealed,
    doomed: Callable[[Row], bool],
    hide: Callable[[Shown], bool],
    reason: Reason,
) -> int:
    """Purge one shard; how many of its pairs went."""
    path = LAYOUT["metadata"].format(sealed.shard.id)
    rows = pq.read_table(folder / path).to_pylist() if path in sealed.files else []
    keep = np.array([not doomed(row) for row in rows], bool)
    gone = {row["uid"] for row, stays in zip(rows, keep, strict=True) if not stays}
    gallery = tuple(s for s in sealed.gallery if s.uid not in gone and not hide(s))
    if not gone and gallery == sealed.gallery:
        return 0
    with ExitStack() as undo:
        files = dict(sealed.files)
        if gone:
            files = _rewritten(folder, sealed, keep, undo)
        kept = [row for row, stays in zip(rows, keep, strict=True) if stays]
        fresh = dataclasses.replace(_account(sealed, kept, reason), files=files, gallery=gallery)
        if gone:
            _log(folder, sealed.shard.id, sorted(gone), reason)
        last = _sink(folder, seal.name(sealed.shard.id), undo)
        last.write(seal.packed(fresh))
        last.close()
        last.publish()
        undo.pop_all()
    with disk(folder):
        _take_place(folder, last.path)
    return len(gone)


def _take_place(folder: Path, fresh: Path) -> None:
    """Put a shard's new files into the place of the old ones, the seal last."""
    at = fresh.with_name(fresh.name.removesuffix(_NEW))
    names = seal.unpacked(fresh.read_bytes()).files
    old = seal.unpacked(at.read_bytes()).files
    for name in names:
        new = folder / (name + _NEW)
        if new.exists():
            new.replace(folder / name)
    for name in old.keys() - names.keys():
        (folder / name).unlink(missing_ok=True)
    fresh.replace(at)


def _sink(folder: Path, name: str, undo: ExitStack) -> Sink:
    sink = Sink(folder / (name + _NEW))
    undo.callback(sink.path.unlink, missing_ok=True)
    undo.callback(sink.discard)
    return sink


def _rewritten(
    folder: Path, sealed: Sealed, keep: np.ndarray[Any, Any], undo: ExitStack
) -> dict[str, Stored]:
    """The files of a shard without some of its rows; a shard without rows has none of them."""
    writers: Mapping[str, Callable[[Path, Sink, np.ndarray[Any, Any]], None]] = {
        "metadata": _metadata,
        "images": _images,
        "img_emb": _matrix,
        "text_emb": _matrix,
        "tfrecords": _records,
    }
    files = dict(sealed.files)
    for form, write in writers.items():
        name = LAYOUT[form].format(sealed.shard.id)
        if files.pop(name, None) and keep.any():
            sink = _sink(folder, name, undo)
            write(folder / name, sink, keep)
            files[name] = sink.close()
            sink.publish()
    return files


def _metadata(path: Path, sink: Sink, keep: np.ndarray[Any, Any]) -> None:
    buffer = BytesIO()
    pq.write_table(pq.read_table(path).filter(keep), buffer, compression="zstd")
    sink.write(buffer.getvalue())


def _images(path: Path, sink: Sink, keep: np.ndarray[Any, Any]) -> None:
    writer = Tar(sink)
    with tarfile.open(path) as tar:
        for number, member in enumerate(tar):
            if keep[number // 3]:  # image, json and txt of each pair
                writer.member(member.name, cast(IO[bytes], tar.extractfile(member)).read())
    writer.close()


def _matrix(path: Path, sink: Sink, keep: np.ndarray[Any, Any]) -> None:
    rows = np.load(path)[keep]
    header = {"descr": "<f2", "fortran_order": False, "shape": rows.shape}
    np.lib.format.write_array_header_1_0(cast(Any, sink), header)
    sink.write(rows.astype("<f2").tobytes())


def _records(path: Path, sink: Sink, keep: np.ndarray[Any, Any]) -> None:
    with path.open("rb") as file:
        for number, values in enumerate(records(file)):
            if keep[number]:
                sink.write(frame(example(values)))


def _account(sealed: Sealed, rows: Sequence[Row], reason: Reason) -> Sealed:
    """The seal's numbers for the rows that stay."""
    tally = sealed.tally
    tally.left[Stage.JUDGE] -= sealed.rows - len(rows)
    tally.lost[reason] += sealed.rows - len(rows)
    # as in `cahlib.curate.dataset`: hundredths, with the nudge
    bins = Counter(int((row["similarity"] + 1) * 100 + 1e-6) - 100 for row in rows)
    return dataclasses.replace(
        sealed,
        rows=len(rows),
        funnel=tally.as_dict(),
        kept=bins,
        similarity=sum(row["similarity"] for row in rows) / max(len(rows), 1),
        domains=dict(Counter(host(row["URL"]) for row in rows).most_common(_DOMAINS)),
    )


def _log(folder: Path, shard: str, uids: Sequence[str], reason: Reason) -> None:
    """Note what goes from a shard: keys alone, which are hashes."""
    line = {"time": time.time(), "shard": shard, "reason": reason.value, "uids": list(uids)}
    with disk(folder), (folder / LOG).open("ab") as file:
        file.write(as_json(line) + b"\n")


def _tell(folder: Path) -> None:
    """Write the pages about the dataset anew."""
    try:
        values = json.loads((folder / "run/job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = {}
    report.write(folder, values)
    card.write(folder, values)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep runs away from the dataset meanwhile."""
    path = folder / "run/lock"
    if not path.parent.is_dir():
        yield
        return
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{folder}: a run is writing here; wait for its end.") from error
        yield
