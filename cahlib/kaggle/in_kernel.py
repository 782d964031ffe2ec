"""The code that runs in the kernel: it receives the run's settings and its private input.

It needs nothing of Kaggle but its folders.
"""

from __future__ import annotations

import os
import signal
import tarfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from cahlib.core import status
from cahlib.core.background import BackgroundLoop
from cahlib.core.errors import ConfigError
from cahlib.core.run_directory import RunDirectory
from cahlib.run.disk_space import folder_size

#: Names of the files in the kernel's private input.
TICKET_NAME, STATE_ARCHIVE = "ticket.json", "state.pack"

#: Bytes at which a run is stopped: Kaggle keeps 20 GB, and shards in progress are finished.
MAX_OUTPUT = 18 * 10**9

#: Seconds between two measurements of the output.
_LOOK = 30.0

#: The share of a short session, and the hours of a long one, reserved for its end.
_SHARE, _MOST = 0.25, 0.25


def receive_settings(
    values: Mapping[str, Any],
    *,
    session: str,
    hours: float,
    inputs: Path = Path("/kaggle/input"),
) -> dict[str, Any]:
    """Return the settings of a run that ends within a session of ``hours``.

    Unpack the state of the dataset's earlier sessions, and store the name of this one. Raise
    ConfigError if the ticket that the settings name is missing.
    """
    settings = dict(values)
    settings["hours"] = round(max(working_hours(hours) - _elapsed(), 0.001), 4)
    if settings.get("engine"):
        settings["engine"] = str(_found(inputs, TICKET_NAME))
    home = Path(settings["output"])
    run = RunDirectory(home)
    run.path.mkdir(parents=True, exist_ok=True)
    run.session.write_text(session)
    if settings.get("swarm") or settings.get("cores"):
        run.swarm.mkdir(exist_ok=True)
        run.swarm_name.write_text(session_run_name(session))
    for state in sorted(inputs.rglob(STATE_ARCHIVE)):
        if not run.ledger.exists():  # else the cell is run once more
            with tarfile.open(state) as pack:
                pack.extractall(home, filter="data")
    BackgroundLoop(_LOOK, partial(stop_when_full, home), at_once=True).start()
    return settings


def stop_when_full(home: Path, most: int = MAX_OUTPUT) -> bool:
    """Stop the run, as Ctrl-C does, if its output is near the bytes that are kept; return if so."""
    if folder_size(home.parent) < most:
        return False
    told = status.read_status(RunDirectory(home).status)
    if status.is_alive(told):
        os.kill(int(told["pid"]), signal.SIGTERM)
    return True


def session_run_name(session: str) -> str:
    """Return the name by which the cloud knows the servers that a session's kernel creates.

    It is chosen by the machine that pushed the kernel, which can therefore delete them.
    """
    return session.rpartition("-")[2]


def working_hours(hours: float) -> float:
    """Return the hours after which a session's run is stopped: at most 15 minutes earlier."""
    return hours - min(_SHARE * hours, _MOST)


def _elapsed() -> float:
    """Return the hours since this process, and thus the session, was started."""
    return (time.time() - float(psutil.Process().create_time())) / 3600


def _found(inputs: Path, name: str) -> Path:
    """Return the path of an input; Kaggle has changed the folders above it before."""
    for path in sorted(inputs.rglob(name)):
        return path
    raise ConfigError(
        f"engine: {name} is not among the inputs of this notebook; kaggle.sh creates it for one "
        "session, so run kaggle.sh again."
    )
