"""The run as a process of its own: started, found again, asked to stop, and torn down.

It outlives the kernel that started it. What it says goes to a log in the run's own folder, secrets
reach it by its environment alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahlib import live
from cahlib.config import Job, settings
from cahlib.errors import ConfigError, RunError
from cahlib.notebook.fields import written
from cahlib.notebook.place import TOKEN
from cahlib.private import FOLDER

_NOTE, _LOG = "child.json", "console.log"

#: Seconds in which a run that is torn down must have ended.
_PATIENCE = 180.0

#: What was started from this process: kept, so that it is taken leave of when it ends.
_started: list[subprocess.Popen[bytes]] = []


def options(job: Job) -> list[str]:
    """The options of `cah run` that make a Job; all, so that no .env can add to them."""
    values = job.values()
    return [f"--{each.name.replace('_', '-')}={written(each, values)}" for each in settings()]


@dataclass(slots=True)
class Child:
    """The run of one dataset, going on or not."""

    home: Path  #: the run's own folder beside the dataset

    @classmethod
    def of(cls, job: Job) -> Child:
        return cls(job.output.folder / "run")

    @property
    def log(self) -> Path:
        return self.home / _LOG

    @property
    def has_servers(self) -> bool:
        """Whether the run may have servers at the cloud."""
        return (self.home / "swarm" / "run").exists()

    def start(self, job: Job, token: str, environment: Mapping[str, str] = os.environ) -> None:
        """Start the run of a job, unless it is going on already."""
        if self.running():
            return
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            (self.home / live.FILE).unlink(missing_ok=True)
            with open(self.log, "wb") as log:
                self._begin(["run", *options(job)], log, _environment(environment, token))
            note = json.dumps(live.process(_started[-1].pid))
            (self.home / _NOTE).write_text(note, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"output: {self.home} cannot be written ({error.strerror}); choose another folder."
            ) from error

    def running(self) -> bool:
        """Whether the run is going on, whoever started it."""
        for each in _started:
            each.poll()
        return self._pid() is not None

    def live(self) -> dict[str, Any]:
        """What the run wrote last of itself."""
        return live.read(self.home)

    def said(self, *, lines: int = 8) -> list[str]:
        """The last lines of its log."""
        with suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - 20_000))
            text = file.read().decode("utf-8", "replace")
            return [line for line in text.replace("\r", "\n").split("\n") if line.strip()][-lines:]
        return []

    def stop(self) -> None:
        """Ask the run to end cleanly; asked again, it leaves at once. Servers go in both cases."""
        if pid := self._pid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def tear_down(
        self, token: str, tell: Callable[[str], None], *, patience: float = _PATIENCE
    ) -> None:
        """End the run at once, and see that none of its servers is left; raises RunError."""
        deadline = time.monotonic() + patience
        tell("Ending the run …")
        stopping = self.live().get("state") == "stopping"
        self.stop()
        if not stopping:
            time.sleep(0.5)  # two signals at once are one
            self.stop()
        while self.running():
            if time.monotonic() > deadline:
                raise RunError(
                    "the run does not end; see its log, and `cah swarm down --all-runs`."
                )
            time.sleep(0.2)
        if self.has_servers:
            tell("Asking the cloud whether its servers are gone …")
            self._servers_down(token)
        tell("The run has ended; nothing of it is left at the cloud.")

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
        """The process of the run: as it says itself, or else as its starter noted."""
        for known in (self.live(), self._note()):
            if live.alive(known) and known.get("state") not in ("ended", "failed"):
                return int(known["pid"])
        return None

    def _note(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return dict(json.loads((self.home / _NOTE).read_text(encoding="utf-8")))
        return {}


def _line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cahlib.cli", *arguments]


def _environment(environment: Mapping[str, str], token: str) -> dict[str, str]:
    """Of the run: the form has said all that CAH_* could say."""
    kept = {k: v for k, v in environment.items() if not k.startswith("CAH_") or k == FOLDER}
    root = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH", ""))))
    return kept | {"PYTHONPATH": path} | ({TOKEN: token} if token else {})
