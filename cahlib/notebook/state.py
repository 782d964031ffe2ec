"""The state of the panel: a pure function from what is known to what is shown and can be clicked.

It knows neither widgets nor clouds. Every word about how a run stands comes from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cahlib.core import status as lives

#: States of a node that a worker answers from.
_READY = {"idle", "works", "silent"}


class Phase(Enum):
    """The phase of a run."""

    NOTHING = "nothing"
    PLANNED = "planned"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"
    STOPPED = "stopped"  #: ended before all was done, because somebody or a limit said so
    FAILED = "failed"  #: it said why
    CRASHED = "crashed"  #: it is gone without a last word


#: Phases from which the run can go on.
UNFINISHED = {Phase.STOPPED, Phase.FAILED, Phase.CRASHED}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """All that is known of a run at one moment."""

    running: bool = False  #: the process of the run is alive
    live: Mapping[str, Any] = field(default_factory=dict)  #: what it wrote last
    launched: bool = False  #: a run was started for this dataset
    asked: str = ""  #: of the last launch: "", "stop" or "down"
    servers: int = 0  #: that the last launch asked for
    log_lines: Sequence[str] = ()  #: the last lines of its log
    busy: str = ""  #: what the panel does beside: "", "plan", "down" or "delete"
    wanted: bool = False  #: the form asks for servers
    planned: bool = False  #: a plan is drawn for exactly these settings
    order: str = ""  #: what the servers of that plan come to
    left: bool = False  #: servers of this run may be at the cloud
    orphans: Sequence[str] = ()  #: sentences on servers that nobody works with
    own: int = 0  #: how many of those are of this run
    vanishing: bool = False  #: the output is on a disk that vanishes with the session
    unasked: str = ""  #: why the cloud could not be asked for them
    token: bool = True  #: there is one to ask it with


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelState:
    """The state that the panel shows."""

    phase: Phase
    heading: str
    bad: bool  #: the heading is bad news
    lines: Sequence[str]  #: the last words of a run that did not end well
    start: str  #: the words on the button that starts
    allowed: frozenset[str]  #: names of the buttons that can be clicked
    settings: bool  #: the form can be changed
    banner: str  #: what servers cost that nobody works with


def panel_state(known: RunInfo) -> PanelState:
    """Return what to show."""
    now = run_phase(known)
    dead = now in (Phase.FAILED, Phase.CRASHED)
    return PanelState(
        phase=now,
        heading=run_heading(known),
        bad=dead,
        lines=known.log_lines[-5:] if dead else (),
        start=_start(known),
        allowed=frozenset(_allowed(known)),
        settings=not known.running and known.busy in ("", "plan"),
        banner=_banner(known),
    )


def run_phase(known: RunInfo) -> Phase:
    """Return where the run stands."""
    state = known.live.get("state")
    if known.running:
        if known.asked or state == "stopping":
            return Phase.STOPPING
        up = state == "running" and (
            not known.servers or ready_servers(known.live) or _tried(known.live)
        )
        return Phase.RUNNING if up else Phase.STARTING
    return Phase.PLANNED if known.planned else _over(known)


def run_heading(known: RunInfo) -> str:
    """Return how the run stands, in a sentence."""
    now = run_phase(known)
    if now is Phase.STARTING and known.servers and known.live.get("state") == "running":
        return f"Starting servers: {ready_servers(known.live)} of {known.servers} ready."
    if now is Phase.STOPPING and known.asked == "down":
        return "The run is ending at once; its servers are being deleted."
    if now is Phase.STOPPED:
        return _stopped(known)
    if now is Phase.FAILED:
        why = known.live.get("sentence") or "".join(known.log_lines[-1:]).removeprefix("cah: ")
        return f"The run failed: {why}"
    return _HEADINGS[now]


_HEADINGS = {
    Phase.NOTHING: "No run yet.",
    Phase.PLANNED: "Planned; nothing has been ordered or started.",
    Phase.STARTING: "The run is starting: the lists and the model are being loaded.",
    Phase.RUNNING: "The run is in progress.",
    Phase.STOPPING: "The run is stopping: what is being judged is finished, servers are deleted.",
    Phase.ENDED: "The run has ended.",
    Phase.CRASHED: "The run crashed: its process is gone without a last word. What was finished is "
    "kept; it can go on from there.",
}


def ready_servers(live: Mapping[str, Any]) -> int:
    """Return how many servers work or wait for work."""
    return sum(node.get("state") in _READY for node in live.get("nodes") or ())


def _over(known: RunInfo) -> Phase:
    """Return the phase of a run that is not going on."""
    state = known.live.get("state")
    if not known.launched and not known.live:
        return Phase.NOTHING
    if state == "ended":
        return Phase.STOPPED if lives.shards_left(known.live) else Phase.ENDED
    if known.asked == "down" or (known.asked and not state):
        return Phase.STOPPED
    if state == "failed" or not state:
        return Phase.FAILED
    return Phase.CRASHED


def _stopped(known: RunInfo) -> str:
    if (left := lives.shards_left(known.live)) and known.live.get("state") == "ended":
        return f"The run was stopped: {left:,} of {known.live['shards']:,} shards are left."
    return "The run was ended at once. What was finished is kept; it can go on from there."


def _tried(live: Mapping[str, Any]) -> bool:
    """Return whether links are being tried: then servers were ready before."""
    return bool(live.get("rates", {}).get("links"))


def _start(known: RunInfo) -> str:
    """Return the words on the button that starts: what it costs is among them."""
    go_on = not known.running and _over(known) in UNFINISHED
    if not known.wanted:
        return "Go on" if go_on else "Start"
    if known.order:
        return f"{'Go on: order' if go_on else 'Order'} {known.order}"
    return "Order servers (Plan first)"


def _banner(known: RunInfo) -> str:
    if known.orphans:
        only = "" if known.own else " Their keys are not here, so they can only be deleted."
        return f"{'. '.join(known.orphans)}.{only}"
    dead = _over(known) in (Phase.FAILED, Phase.CRASHED)
    why = known.unasked or ("give the token." if dead and not known.token else "")
    if why and known.left and not known.running:
        return f"Whether servers of this run are left could not be asked: {why}"
    return ""


def _allowed(known: RunInfo) -> set[str]:
    idle = not known.running and not known.busy
    allowed = {
        "plan": idle,
        "fit": idle,
        "start": idle and bool(known.order or not known.wanted),
        "stop": known.running and run_phase(known) is not Phase.STOPPING,
        "delete": bool(known.orphans) and known.busy in ("", "plan"),
        "mount": idle and known.vanishing,
        "adopt": idle and bool(known.own),
        "down": known.busy in ("", "plan") and (known.running or known.left),
    }
    return {name for name, can in allowed.items() if can}
