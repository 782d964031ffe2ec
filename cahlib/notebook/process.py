"""The run as a process of its own: start it, find it again, stop it, tear it down.

It outlives the kernel that started it. Its output goes to a log in the run directory, one per
launch. The token is passed in its environment, and only if it creates servers.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahlib.core import status
from cahlib.core.atomic import write_file
from cahlib.core.config import Job, settings
from cahlib.core.errors import CahError, ConfigError, RunError
from cahlib.core.retry import wait_until
from cahlib.core.run_directory import RunDirectory
from cahlib.core.secret_store import STATE_VARIABLE, WATCHDOG_VARIABLE
from cahlib.notebook.fields import format_value
from cahlib.notebook.runtime import TOKEN_VARIABLE

_NOTE, _LOG = "child.json", "console.log"

#: Seconds in which a run that is torn down must have ended.
_TEAR_DOWN_TIMEOUT = 180.0

#: Seconds within which a running run shows that it has been asked to stop.
_HEARD = 30.0

#: What was started from this process: kept, so that it is taken leave of when it ends.
_started: list[subprocess.Popen[bytes]] = []


def run_options(job: Job) -> list[str]:
    """Return the options of `cah run` for a Job; all of them, so that no .env adds to them."""
    values = job.values()
    return [f"--{each.name.replace('_', '-')}={format_value(each, values)}" for each in settings()]


@dataclass(slots=True)
class RunProcess:
    """The run of one dataset, going on or not."""

    home: Path  #: the run's own folder beside the dataset

    @classmethod
    def of(cls, job: Job) -> RunProcess:
        return cls(RunDirectory(job.output.folder).path)

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.home.parent)

    @property
    def log(self) -> Path:
        return self.home / _LOG

    @property
    def has_servers(self) -> bool:
        """Return whether the run may have servers in the cloud."""
        return self.directory.swarm_name.exists()

    def start(
        self,
        job: Job,
        token: str,
        environment: Mapping[str, str] = os.environ,
        *,
        servers: int = 0,
    ) -> None:
        """Start the run of a job unless it is running; ``servers`` is how many are planned."""
        if self.running():
            return
        token = token if servers else ""  # a process that makes none has no use for it
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self.directory.status.unlink(missing_ok=True)
            self._keep_log()
            with open(self.log, "wb") as log:
                self._begin(["run", *run_options(job)], log, _environment(environment, token))
            self._write_note(status.process_identity(_started[-1].pid) | {"servers": servers})
        except OSError as error:
            raise ConfigError(
                f"output: {self.home} cannot be written ({error.strerror}); choose another folder."
            ) from error

    def running(self) -> bool:
        """Return whether the run is running, whoever started it."""
        for each in _started:
            each.poll()
        return self._pid() is not None

    def live(self) -> dict[str, Any]:
        """Return the run's last status."""
        return status.read_status(self.directory.status)

    def log_lines(self, *, lines: int = 8) -> list[str]:
        """Return the last lines of its log."""
        with suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - 20_000))
            text = file.read().decode("utf-8", "replace")
            return [line for line in text.replace("\r", "\n").split("\n") if line.strip()][-lines:]
        return []

    @property
    def launched(self) -> bool:
        """Return whether a run was started for this dataset from a notebook."""
        return bool(self._note())

    @property
    def servers(self) -> int:
        """Return how many servers the last launch asked for."""
        return int(self._note().get("servers", 0))

    @property
    def asked(self) -> str:
        """Return what was asked of the last launch: "stop", "down", or "" if nothing was."""
        return str(self._note().get("asked", ""))

    def stop(self) -> None:
        """Ask the run to end cleanly, once: a second signal would be an abort."""
        if (pid := self._pid()) and not self.asked:
            self._ask("stop")
            _end(pid)

    def tear_down(
        self, token: str, report: Callable[[str], None], *, timeout: float = _TEAR_DOWN_TIMEOUT
    ) -> None:
        """End the run at once, and make sure that its servers are deleted; raise RunError."""
        report("Ending the run …")
        if pid := self._pid():
            if not self.asked and (state := self.live().get("state")) != "stopping":
                _end(pid)
                # two signals at once are one; a busy machine may be late in hearing the first
                known = _HEARD if state == "running" else 0.5
                wait_until(self._has_heard, timeout=known, pause=0.1)
            self._ask("down")
            _end(pid)
        if not wait_until(lambda: not self.running(), timeout=timeout, pause=0.2):
            raise RunError("the run does not end; see its log, and `cah swarm down --all-runs`.")
        if self.has_servers:
            report("Asking the cloud whether its servers are gone …")
            self._servers_down(token)
        report("The run has ended; nothing of it is left at the cloud.")

    def _has_heard(self) -> bool:
        return not self.running() or self.live().get("state") == "stopping"

    def _servers_down(self, token: str) -> None:
        if not token:
            raise RunError("token: give it again, so that the cloud can be asked for servers.")
        ran = subprocess.run(
            _line("swarm", "down", "--yes", f"--output={self.home.parent}"),
            env=_environment(os.environ, token),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            raise RunError((ran.stderr.strip() or ran.stdout.strip()).removeprefix("cah: "))

    def _begin(self, arguments: list[str], log: Any, environment: Mapping[str, str]) -> None:
        process = subprocess.Popen(
            _line(*arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what ends or interrupts the kernel is not for it
        )
        _started.append(process)

    def _pid(self) -> int | None:
        """Return the pid of the run: from its status, or else from its starter's note."""
        for known in (self.live(), self._note()):
            if status.is_alive(known) and known.get("state") not in ("ended", "failed"):
                return int(known["pid"])
        return None

    def _keep_log(self) -> None:
        """Rename the log of the previous launch: console-1.log is the oldest."""
        if self.log.exists():
            kept = (self.log.with_name(f"console-{n}.log") for n in itertools.count(1))
            self.log.rename(next(path for path in kept if not path.exists()))

    def _ask(self, what: str) -> None:
        """Record for every kernel what was asked; a failure to write is ignored."""
        with suppress(CahError):
            self._write_note(self._note() | {"asked": what})

    def _write_note(self, note: Mapping[str, Any]) -> None:
        write_file(self.home / _NOTE, json.dumps(note))

    def _note(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return dict(json.loads((self.home / _NOTE).read_text(encoding="utf-8")))
        return {}


def _line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cahlib.commands.cli", *arguments]


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def _environment(environment: Mapping[str, str], token: str) -> dict[str, str]:
    """Return the environment of the run, without CAH_* variables: the form has all settings."""
    kept = {
        name: value
        for name, value in environment.items()
        if name != TOKEN_VARIABLE and (not name.startswith("CAH_") or name == STATE_VARIABLE)
    }
    root = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH", ""))))
    given = (
        {TOKEN_VARIABLE: token, WATCHDOG_VARIABLE: environment.get(WATCHDOG_VARIABLE, "")}
        if token
        else {}
    )
    return kept | {"PYTHONPATH": path} | given
