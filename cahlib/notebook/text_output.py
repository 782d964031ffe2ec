"""The progress of a run in lines, for where no widgets are shown."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeAlias

from cahlib.core.errors import RunError
from cahlib.notebook import state, view
from cahlib.notebook.panel import Panel

_Write: TypeAlias = Callable[[str], None]

#: Seconds between two lines.
_HEARTBEAT = 60.0

#: What the log says now and then of how the run stands.
_PLAIN = re.compile(r"\d+ s, shards ")


def print_progress(panel: Panel, write: _Write, *, pause: float = _HEARTBEAT) -> None:
    """Write the progress of a run until it has ended; raise RunError if it failed."""
    written: set[str] = set()
    next_line = 0.0
    while panel.process.running():
        if time.monotonic() >= next_line:
            _write_news(panel, write, written, running=True)
            next_line = time.monotonic() + pause
        time.sleep(0.2)
    live = panel.process.live()
    if live.get("state") != "ended":
        raise RunError(live.get("sentence") or " ".join(panel.process.log_lines(lines=1)))
    _write_news(panel, write, written, running=False)


def _write_news(panel: Panel, write: _Write, written: set[str], *, running: bool) -> None:
    """Write how the run stands, and what is new in its log."""
    log_lines = panel.process.log_lines(lines=20)
    for line in [each for each in log_lines if each not in written and not _PLAIN.match(each)]:
        written.add(line)
        write(line)
    heading = state.run_heading(panel.known(panel.process))
    write(view.text_line(heading, panel.process.live(), running=running))
