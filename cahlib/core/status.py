"""The state of a run in a file, live.json, for those who watch it from another process.

It is written anew about once a second, whole or not at all. Its values are those of a `Snapshot`,
the rates over time, who runs, and in the end how it went. It does not know who reads it.
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

FILE = "live.json"

#: Points of the rates over time: enough for a chart, and the file stays small.
_POINTS = 240

#: What the rates over time are of, in the order of each point's numbers.
CURVES = ("elapsed", "links", "images", "pairs", "busy")


@contextmanager
def recorded(
    home: Path, listener: Listener, *, stopping: Callable[[], bool] = lambda: False
) -> Iterator[Listener]:
    """A listener that also writes what it hears into a run's own folder, and the end at the end."""
    record = _Record(home / FILE, stopping)

    def hear(snapshot: Snapshot) -> None:
        listener(snapshot)
        record.take(snapshot)

    record.write("starting")
    try:
        yield hear
    except BaseException as error:
        record.end("ended" if isinstance(error, Stopped) else "failed", _sentence(error))
        raise
    record.end("ended")


def read(home: Path) -> dict[str, Any]:
    """What a run has written last; nothing if there is none, or it cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads((home / FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def stats(live: Mapping[str, Any]) -> Stats:
    """The stats of all shards, those in work included."""
    return Stats.from_dict(live.get("stats", {}))


def left(live: Mapping[str, Any]) -> int:
    """Return how many shards of a run are still to do; those that failed are not."""
    told = [live.get(name, 0) for name in ("shards", "done", "failed")]
    return max(told[0] - sum(told[1:]), 0) if all(isinstance(n, int) for n in told) else 0


def process(pid: int) -> dict[str, Any]:
    """What identifies a process, even after its number went to another one."""
    return {"pid": pid, "born": _born(pid)}


def alive(known: Mapping[str, Any]) -> bool:
    """Whether the process that `process` told of is still there."""
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
        self._who = process(os.getpid())
        self._last: dict[str, Any] = {}
        self._points: list[list[float]] = []
        self._before: int | None = None  #: shards that earlier launches had done
        self._gap = 0.0  #: seconds between two points

    def take(self, snapshot: Snapshot) -> None:
        if self._before is None:
            self._before = snapshot.done
        self._last = {f.name: _plain(getattr(snapshot, f.name)) for f in fields(snapshot)}
        rates = {"elapsed": snapshot.elapsed, "busy": snapshot.busy, **snapshot.rates}
        if not self._points or snapshot.elapsed - self._points[-1][0] >= self._gap:
            self._points.append([round(rates[name], 3) for name in CURVES])
        if len(self._points) > _POINTS:
            del self._points[1::2]
            self._gap = 2 * snapshot.elapsed / _POINTS
        self.write("stopping" if self._stopping() else "running")

    def end(self, state: str, sentence: str = "") -> None:
        """Write the last state, without pictures: who takes them out of the dataset is done."""
        self._last.pop("latest", None)
        self.write(state, sentence)

    def write(self, state: str, sentence: str = "") -> None:
        """Write the file; a full disk ends the watching, not the run."""
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
    """A value of a snapshot as JSON knows it."""
    if isinstance(value, Stats):
        return value.as_dict()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _sentence(error: BaseException) -> str:
    if isinstance(error, CahError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; a start with the same output goes on from here."
    return f"a fault of cahlib's ({type(error).__name__}); the log has all of it."


def _born(pid: int) -> str:
    """When a process was started, as the kernel counts; "" where nobody tells, or it has ended."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if words[0] in "ZX" else words[19]
    return ""
