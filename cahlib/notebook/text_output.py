"""A run told in lines, for where no widgets are shown."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from cahlib.core.errors import RunError
from cahlib.notebook import state, view
from cahlib.notebook.panel import Panel

#: Seconds between two lines.
_HEARTBEAT = 60.0

#: What the log says now and then of how the run stands.
_PLAIN = re.compile(r"\d+ s, shards ")


def print_progress(desk: Panel, say: Callable[[str], None], *, pause: float = _HEARTBEAT) -> None:
    """Tell of the run until it has ended; raises RunError if it failed."""
    told: set[str] = set()
    next_line = 0.0
    while desk.child.running():
        if time.monotonic() >= next_line:
            _tell(desk, say, told, running=True)
            next_line = time.monotonic() + pause
        time.sleep(0.2)
    live = desk.child.live()
    if live.get("state") != "ended":
        raise RunError(live.get("sentence") or " ".join(desk.child.said(lines=1)))
    _tell(desk, say, told, running=False)


def _tell(desk: Panel, say: Callable[[str], None], told: set[str], *, running: bool) -> None:
    """Say how the run stands, and what is new in its log beside that."""
    said = desk.child.said(lines=20)
    for line in [each for each in said if each not in told and not _PLAIN.match(each)]:
        told.add(line)
        say(line)
    heading = state.run_heading(desk.known(desk.child))
    say(view.text_line(heading, desk.child.live(), running=running))
