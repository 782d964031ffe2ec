"""One session on Kaggle: create servers, push and follow a kernel, delete servers, fetch output.

The cloud's token stays on this machine. However a session ends, its servers are deleted; what a
crash of this machine left behind is found by the next launch with the same output.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cahlib.core.background import BackgroundLoop
from cahlib.core.config import Job
from cahlib.core.errors import CahError, ConfigError, RunError
from cahlib.core.lock import lock_dataset
from cahlib.core.retry import retry
from cahlib.core.run_directory import RunDirectory
from cahlib.dataset.layout import MANIFESTS
from cahlib.kaggle import pack
from cahlib.kaggle.in_kernel import session_run_name
from cahlib.kaggle.limits import MAX_QUEUE_HOURS, allowed_hours
from cahlib.kaggle.service import KaggleAccount, KaggleUnavailable, KernelRefused, KernelState
from cahlib.run.open_run import require_same_job

#: Hours by which a kernel may end late; seconds by which its last lines may.
_LATE, _LAST_LINES = 0.1, 10

#: The part of a kernel's output that is the dataset; what is fetched last; what is not fetched.
_BELOW = "dataset/"
_RUN = RunDirectory()
_LAST = tuple(f"{_BELOW}{name}" for name in (f"{MANIFESTS}/", "dataset.json", f"{_RUN.path}/"))
_NOT = tuple(
    f"{_BELOW}{name}"
    for name in (
        f"{_RUN.parcels}/",
        f"{_RUN.path}/ticket/",
        _RUN.swarm_name,
        _RUN.job,
        _RUN.elsewhere,
        _RUN.session,
    )
)


class ServersProtocol(Protocol):
    """The swarm of a session; `down` deletes everything that the other methods create."""

    def up(self, hours: float) -> bytes: ...

    def tend(self) -> None: ...

    def down(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KaggleSession:
    """The parameters of a session."""

    job: Job
    hours: float  #: of the kernel's session
    source: pack.KernelSource
    own_swarm: bool = False  #: the kernel creates the servers, with a token in Kaggle's secrets
    name: str = "cahlib"  #: the kernel's
    pause: float = 20  #: seconds between two polls of the kernel
    secrets: Sequence[str] = ()  #: must not be in what is pushed


@dataclass(frozen=True, slots=True)
class SessionNote:
    """A note in the run directory of a session that this machine has not seen end."""

    path: Path

    @classmethod
    def of(cls, job: Job) -> SessionNote:
        return cls(RunDirectory(job.output.folder).kaggle)

    @property
    def inputs(self) -> str:
        """Return the name of the kernel's private input, and of its session; "" without one."""
        return str(self._read().get("inputs", ""))

    @property
    def pushed(self) -> bool:
        """Return whether a kernel may have been started whose output is not here yet."""
        return bool(self._read().get("pushed"))

    def write(self, *, inputs: str, pushed: bool) -> None:
        self.path.write_text(json.dumps({"inputs": inputs, "pushed": pushed}), encoding="utf-8")

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}


def check_session(
    session: KaggleSession, kaggle: KaggleAccount, *, report: Callable[[str], None]
) -> KaggleSession:
    """Return a session limited to the account's hours; raise ConfigError if it cannot begin.

    A kernel that an earlier launch lost sight of is followed or fetched first, whatever the quota.
    """
    kernel = f"{kaggle.user}/{session.name}"
    if SessionNote.of(session.job).pushed:
        return session
    if not kaggle.state(kernel).over:
        raise _another(kernel, session.job.output.folder)
    return replace(session, hours=allowed_hours(kaggle, session.hours, report=report))


def run_session(
    session: KaggleSession,
    kaggle: KaggleAccount,
    servers: ServersProtocol | None,
    *,
    report: Callable[[str], None],
) -> Path:
    """Run a session from its start, or from where an earlier launch lost sight of it, to its end.

    Return the folder of the dataset. Raise ConfigError before anything was started, RunError if the
    kernel failed; the servers are deleted in every case. While another process holds the folder's
    lock, the servers are its own, and ConfigError is raised.
    """
    with lock_dataset(session.job.output.folder):
        return _attend(session, kaggle, servers, report)


def _attend(
    session: KaggleSession,
    kaggle: KaggleAccount,
    servers: ServersProtocol | None,
    report: Callable[[str], None],
) -> Path:
    kernel, folder = f"{kaggle.user}/{session.name}", session.job.output.folder
    note = SessionNote.of(session.job)
    # checked here too, as the kernel would reject another job only when servers already cost money;
    # the kernel's own files are not known here
    require_same_job(session.job, files_known=False)
    with _gone_after(servers, kaggle, note, report):  # an earlier launch may have left some, too
        state = kaggle.state(kernel)
        going = not state.over
        if note.pushed and not going:
            # a push may not have arrived, or the kernel may have been deleted
            if state.name and _worked_for(kaggle, kernel) == note.inputs:
                report("fetching the output of an earlier session.")
                fetch_output(kaggle, kernel, folder)
            note.forget()
        if going and not note.pushed:
            raise _another(kernel, folder)
        if going:
            hours = session.hours
            report(f"{kernel} is running; following it.")
        else:
            hours = allowed_hours(kaggle, session.hours)
            _launch(session, kaggle, servers, hours, report)
        tend = servers.tend if servers else lambda: None
        state = follow_kernel(kaggle, kernel, hours, pause=session.pause, report=report, tend=tend)
    if going and _worked_for(kaggle, kernel) != note.inputs:
        note.forget()
        raise RunError(
            f"{kernel} ended with {state.name} and left no output of a session for {folder}; "
            "nothing was fetched."
        )
    fetched = fetch_output(kaggle, kernel, folder)
    note.forget()
    report(f"{fetched} files were fetched.")
    if state.name != "COMPLETE":
        why = state.why or "see its log"
        raise RunError(
            f"the kernel ended with {state.name} ({why}); its finished shards are in {folder}."
        )
    return folder


def describe_interruption(session: KaggleSession, user: str) -> str:
    """Return what is still running at Kaggle after an interruption, and how to end it."""
    note, has_servers = SessionNote.of(session.job), session.job.place.has_servers
    if not note.pushed:
        return "interrupted; no kernel was started."
    if has_servers and not session.own_swarm:
        return (
            "interrupted. A kernel that was started ends by itself within minutes of losing its "
            "servers; run the same command to fetch its finished shards and continue."
        )
    costs = "its servers cost money" if has_servers else "costs GPU hours, but no money"
    end = (
        f"`cah swarm down --run {session_run_name(note.inputs)}` with HCLOUD_TOKEN set deletes its "
        "servers, and the kernel ends within a minute of it"
        if has_servers
        else f"cancel it on its page, https://www.kaggle.com/code/{user}/{session.name}: no "
        "program can"
    )
    return (
        f"interrupted here. The kernel keeps running and {costs}, for {session.hours:g} hours at "
        f"most; run the same command to follow it and fetch its output. To end it: {end}."
    )


def _another(kernel: str, folder: Path) -> ConfigError:
    return ConfigError(
        f"the kernel {kernel} is running for another dataset than {folder}; wait until it ends, or "
        "set another CAH_KAGGLE_NAME."
    )


def server_hours(hours: float) -> float:
    """Return for how many hours a session needs its servers, at most."""
    return hours + MAX_QUEUE_HOURS + _LATE


def follow_kernel(
    kaggle: KaggleAccount,
    kernel: str,
    hours: float,
    *,
    pause: float,
    report: Callable[[str], None],
    tend: Callable[[], None],
) -> KernelState:
    """Wait for a kernel's end and print its log, through interruptions of the network.

    ``tend`` is called at each poll. Raise RunError for a kernel that gets no GPU, or does not end
    in time.
    """
    pushed, began, away = time.monotonic(), 0.0, False
    log = _LogPrinter(kaggle, kernel, report, pause)
    seen = ""
    try:
        while True:
            try:
                state = kaggle.state(kernel)
                away = False
            except KaggleUnavailable as error:
                state = KernelState(name=seen or "QUEUED")
                if not away:
                    report(f"{error} Trying again; the kernel keeps running.")
                away = True
            if state.name != seen:
                report(f"{kernel}: {state.name.lower() or 'not there'}")
                seen = state.name
            if state.over:
                log.finish()
                return state
            now = time.monotonic()
            began = began or (now if state.name == "RUNNING" else 0.0)
            if began and now - began > (hours + _LATE) * 3600:
                raise RunError(f"{kernel} has not ended within {hours:g} hours.")
            if not began and now - pushed > MAX_QUEUE_HOURS * 3600:
                raise RunError(
                    f"{kernel} got no GPU within {MAX_QUEUE_HOURS:g} hours; try again later."
                )
            tend()
            time.sleep(pause)
    finally:
        log.stop()


def fetch_output(kaggle: KaggleAccount, kernel: str, folder: Path) -> int:
    """Download a kernel's dataset into the local one; return the number of files.

    Manifests come last, so that an interrupted download is not part of the dataset yet. Shards that
    are here already are skipped: the kernel has them from here.
    """
    here = pack.committed_shard_ids(folder)
    wanted = {
        name: url
        for name, url in kaggle.outputs(kernel)
        if name.startswith(_BELOW) and not name.startswith(_NOT) and ".." not in Path(name).parts
        if _shard(Path(name)) not in here
    }
    order = sorted(wanted, key=lambda name: name.startswith(_LAST))
    for name in order:
        if name == f"{_BELOW}{_RUN.ledger}":
            for kind in ("-wal", "-shm"):  # of the ledger that it replaces
                (folder / f"{_RUN.ledger}{kind}").unlink(missing_ok=True)
        target = folder / name.removeprefix(_BELOW)
        download = partial(kaggle.download, wanted[name], target)
        retry(download, errors=KaggleUnavailable, pauses=(0, 0))
    return len(order)


def _worked_for(kaggle: KaggleAccount, kernel: str) -> str:
    """Return the session of a kernel's output; "" if the kernel had not recorded it yet."""
    for name, url in kaggle.outputs(kernel):
        if name == f"{_BELOW}{_RUN.session}":
            with tempfile.TemporaryDirectory(prefix="cahlib-kaggle-") as made:
                kaggle.download(url, told := Path(made, "session"))
                return told.read_text(encoding="utf-8")
    return ""


def _shard(path: Path) -> str:
    """Return the shard id of a shard's file: images/ID.tar, metadata/metadata_ID.parquet …"""
    return path.stem.removeprefix(f"{path.parent.name}_")


def _launch(
    session: KaggleSession,
    kaggle: KaggleAccount,
    servers: ServersProtocol | None,
    hours: float,
    report: Callable[[str], None],
) -> None:
    """Create the servers, upload the private input, and start the kernel."""
    job, slug = session.job, f"{session.name}-inputs-{secrets.token_hex(4)}"
    note = SessionNote.of(job)
    about: dict[str, Any] = {
        "id": f"{kaggle.user}/{session.name}",
        "title": session.name,
        "is_private": True,
        "dataset_sources": [f"{kaggle.user}/{slug}"],
    }
    values = pack.kernel_settings(
        job, hours=hours, own_swarm=session.own_swarm, ticket=servers is not None
    )
    with tempfile.TemporaryDirectory(prefix="cahlib-kaggle-") as made:
        kernel, inputs = Path(made, "kernel"), Path(made, "inputs")
        kernel.mkdir()
        inputs.mkdir()
        pack.write_kernel(kernel, session.source, values, about, session=slug)
        pack.check_no_secrets(kernel, session.secrets)
        job.store(note.path.parent / "job.json")
        ticket = servers.up(server_hours(hours)) if servers else None
        pack.write_inputs(inputs, job.output, ticket)
        pack.check_no_secrets(inputs, session.secrets)
        report("uploading the kernel's private input to Kaggle.")
        note.write(inputs=slug, pushed=False)
        kaggle.bring(inputs, slug, pause=min(session.pause, 5))
        note.write(inputs=slug, pushed=True)
        try:
            url = kaggle.push(kernel, seconds=hours * 3600)
        except KernelRefused:
            note.write(inputs=slug, pushed=False)
            raise
    report(f"the kernel was started for {hours:g} hours: {url}")


@contextmanager
def _gone_after(
    servers: ServersProtocol | None,
    kaggle: KaggleAccount,
    note: SessionNote,
    report: Callable[[str], None],
) -> Iterator[None]:
    """Delete the servers however the block ends, and if possible the private input."""
    try:
        yield
    finally:
        if servers:
            servers.down()
            report("all servers are deleted, as the cloud confirms.")
        if note.inputs:
            with suppress(CahError):  # it is private, and its ticket is no longer valid
                kaggle.remove(note.inputs)


class _LogPrinter:
    """Prints a kernel's log as it grows; a broken stream restarts from its beginning."""

    def __init__(
        self, kaggle: KaggleAccount, kernel: str, report: Callable[[str], None], pause: float
    ) -> None:
        self._lines, self._report, self._printed = partial(kaggle.log, kernel), report, 0
        self._read = threading.Event()  #: the stream was read to its end
        self._loop = BackgroundLoop(pause, self._print, at_once=True)
        self._loop.start()

    def _print(self) -> None:
        for number, line in enumerate(self._lines()):
            if self._loop.stopping.is_set():
                return
            if number >= self._printed:
                self._printed += 1
                self._report(f"| {line.rstrip()}")
        self._read.set()

    def finish(self) -> None:
        """Wait for the last lines of a kernel that has ended: they say why."""
        self._read.clear()
        self._loop.wake()
        self._read.wait(_LAST_LINES)

    def stop(self) -> None:
        """Print no more."""
        self._loop.stop(timeout=0)  # it may be waiting for a line
