"""The status of a run in a file, live.json, which other processes read.

It is rewritten atomically about once per second. It holds the values of a `Snapshot`, the rates
over time, the process that runs, and in the end how the run ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from cahlib.core.atomic import write_file
from cahlib.core.errors import CahError, Stopped
from cahlib.core.progress import Listener, Snapshot
from cahlib.core.records import Stats

#: Points of the rates over time: enough for a chart, and the file stays small.
_POINTS = 240

#: The values of each point of the history, in their order.
RATE_SERIES = ("elapsed", "links", "images", "pairs", "busy")


@contextmanager
def record_status(
    path: Path, listener: Listener, *, stopping: Callable[[], bool] = lambda: False
) -> Iterator[Listener]:
    """Provide a listener that also writes each snapshot, and the end, to the run's status file."""
    record = _Record(path, stopping)

    def listen(snapshot: Snapshot) -> None:
        listener(snapshot)
        record.take(snapshot)

    record.write("starting")
    try:
        yield listen
    except BaseException as error:
        record.end("ended" if isinstance(error, Stopped) else "failed", _sentence(error))
        raise
    record.end("ended")


def read_status(path: Path) -> dict[str, Any]:
    """Return the last status of a run; an empty dict if its file cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def status_stats(live: Mapping[str, Any]) -> Stats:
    """Return the stats of all shards, those in progress included."""
    return Stats.from_dict(live.get("stats", {}))


def shards_left(live: Mapping[str, Any]) -> int:
    """Return how many shards of a run are still to do, not counting failed ones."""
    counts = [live.get(name, 0) for name in ("shards", "done", "failed")]
    return max(counts[0] - sum(counts[1:]), 0) if all(isinstance(n, int) for n in counts) else 0


def process_identity(pid: int) -> dict[str, Any]:
    """Return what identifies a process, even after its pid was reused."""
    return {"pid": pid, "born": _born(pid)}


def is_alive(known: Mapping[str, Any]) -> bool:
    """Return whether the process of a `process_identity` is still running."""
    pid = known.get("pid", 0)
    if not pid:
        return False
    if born := known.get("born"):
        return _born(pid) == str(born)
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


class _Record:
    def __init__(self, path: Path, stopping: Callable[[], bool]) -> None:
        self._path, self._stopping = path, stopping
        self._who = process_identity(os.getpid())
        self._last: dict[str, Any] = {}
        self._points: list[list[float]] = []
        self._before: int | None = None  #: shards done by earlier launches
        self._gap = 0.0  #: seconds between two points

    def take(self, snapshot: Snapshot) -> None:
        if self._before is None:
            self._before = snapshot.done
        self._last = {f.name: _plain(getattr(snapshot, f.name)) for f in fields(snapshot)}
        rates = {"elapsed": snapshot.elapsed, "busy": snapshot.busy, **snapshot.rates}
        if not self._points or snapshot.elapsed - self._points[-1][0] >= self._gap:
            self._points.append([round(rates[name], 3) for name in RATE_SERIES])
        if len(self._points) > _POINTS:
            del self._points[1::2]
            self._gap = 2 * snapshot.elapsed / _POINTS
        self.write("stopping" if self._stopping() else "running")

    def end(self, state: str, sentence: str = "") -> None:
        """Write the last state, without pictures, which may be purged from the dataset later."""
        self._last.pop("latest", None)
        self.write(state, sentence)

    def write(self, state: str, sentence: str = "") -> None:
        """Write the file; a full disk does not end the run."""
        values = self._last | self._who | {
            "state": state,
            "sentence": sentence,
            "written": time.time(),
            "before": self._before or 0,
            "history": self._points,
        }  # fmt: skip
        with suppress(CahError):
            write_file(self._path, json.dumps(values), sync=False)


def _plain(value: Any) -> Any:
    """Return a value of a snapshot in JSON's types."""
    if isinstance(value, Stats):
        return value.as_dict()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _sentence(error: BaseException) -> str:
    if isinstance(error, CahError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; start again with the same output to continue."
    return f"a bug in cahlib ({type(error).__name__}); see the log."


def _born(pid: int) -> str:
    """Return a process's start time in the kernel's clock ticks; "" if unknown or ended."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if words[0] in "ZX" else words[19]
    return ""
