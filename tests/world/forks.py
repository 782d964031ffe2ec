"""Processes that cost no start: each is the fork of one that has all loaded.

To import torch and what else a run needs takes two CPU seconds, what a scraper needs one, and most
tests that start them are about what they do afterwards. What a start reads but once, such as
OMP_NUM_THREADS, is that of the first one.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import multiprocessing.connection
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent.parent

#: A Python that starts anew, as sys.executable does in the tests' own processes.
PYTHON = sys.executable
#: A Python that is a fork (`tests.world.zygote`), where there is one; what forks start are forks.
interpreter = PYTHON

#: What commands import when they need it, and what all of the tests' own processes do.
_LOADED = (
    "alembic.command", "cahlib.browse.app", "cahlib.commands.check_dataset",
    "cahlib.dataset.maintain.verify", "cahlib.dataset.show.report",
    "cahlib.dataset.write.shard_writer", "cahlib.demo.world", "cahlib.kaggle.servers",
    "cahlib.kaggle.session", "cahlib.model.clip", "cahlib.model.model_source",
    "cahlib.run.pipeline", "cahlib.run.scrapers", "cahlib.swarm.lifecycle", "cahlib.engine.local",
    "cahlib.swarm.hetzner", "cahlib.tracker.app", "cahlib.run.worker", "ipykernel.kernelapp",
    "ipywidgets", "nbconvert.nbconvertapp", "pandas", "pyarrow.parquet", "s3fs", "uvicorn",
    "webdataset",
)  # fmt: skip
#: What Dask's processes on a node import, and cahlib there.
_LOADED_ON_NODES = (
    "ada_url", "aiodns", "aiohttp", "brotli", "cryptography.x509", "cykooz_resizer",
    "distributed.cli.dask_scheduler", "distributed.cli.dask_worker",
    "distributed.diagnostics.websocket", "distributed.http.health",
    "distributed.http.scheduler.info", "distributed.http.scheduler.json",
    "distributed.http.scheduler.missing_bokeh", "distributed.http.scheduler.prometheus.core",
    "distributed.http.statics", "distributed.http.worker.prometheus.core", "faulthandler",
    "fsspec.implementations.local", "ftfy", "isal.isal_zlib", "msgspec",
    "multiprocessing.resource_tracker", "multiprocessing.synchronize", "numpy.random",
    "numpy.typing", "PIL.ImageCms", "PIL.ImageSequence", "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin", "PIL.WebPImagePlugin", "prometheus_client", "publicsuffixlist", "pycld2",
    "rbloom", "regex", "simplejpeg", "tarfile", "tornado.platform.asyncio", "yarl",
)  # fmt: skip


class Process:
    """As much of `subprocess.Popen`, for text, as tests ask of a command."""

    def __init__(self, process: Any, stdout: IO[str] | None) -> None:
        self._process, self.stdout, self.pid = process, stdout, process.pid
        self._lock = threading.Lock()  # a second thread that reads the code at its end gets 255

    @property
    def returncode(self) -> int:
        """Its exit code once it has ended; negative: by this signal."""
        with self._lock:
            code = self._process.exitcode
        return code  # type: ignore[no-any-return]

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        multiprocessing.connection.wait([self._process.sentinel], timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("cah", timeout or 0)
        return self.returncode

    def communicate(self) -> tuple[str, None]:
        said = ""
        if self.stdout:
            with self.stdout as stdout:
                said = stdout.read()
        self.wait()
        return said, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def start(
    line: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.STDOUT,
) -> Process:
    """Start ``python LINE`` (``-m MODULE …`` or ``-c CODE``) in a session of its own.

    It reads nothing; its streams go where `subprocess.Popen` would have them.
    """
    from tests.world import zygote

    context = _context()
    multiprocessing.set_executable(zygote.interpreter())  # of the process that forks
    reader, writer = os.pipe() if stdout == subprocess.PIPE else (-1, -1)
    out = writer if isinstance(stdout, int) else stdout.fileno()
    err = out if isinstance(stderr, int) else stderr.fileno()
    with open(os.devnull) as nothing:
        streams = [_Stream(each) for each in (nothing.fileno(), out, err)]
        arguments = (list(line), dict(env), str(cwd or os.getcwd()), streams)
        process = context.Process(target=_become, args=arguments, daemon=True)
        process.start()
    if writer >= 0:
        os.close(writer)
    return Process(process, open(reader, encoding="utf-8") if writer >= 0 else None)


def _context() -> Any:
    os.environ["PYTHONPATH"] = str(ROOT)  # by which the process that forks finds this module
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def run(
    line: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a line to its end, as `subprocess.run` would."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = start(line, env=env, cwd=cwd, stdout=out, stderr=err).wait()
        shown = [each.seek(0) or each.read() for each in (out, err)]
    return subprocess.CompletedProcess(line, code, *shown)


class _Stream:
    """A file descriptor that is handed to another process."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _handed, (DupFd(self._number),)


def _handed(given: Any) -> int:
    return int(given.detach())


def _become(line: list[str], env: dict[str, str], cwd: str, streams: list[int]) -> None:
    os.setsid()
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    become(line, env, cwd)


def become(line: list[str], env: dict[str, str], cwd: str, blocked: Sequence[int] = ()) -> None:
    """Be a Python that was started by this line; what it shares with a fork is undone."""
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    multiprocessing.process.ORIGINAL_DIR = cwd  # type: ignore[attr-defined]  # "" of what it starts
    sys.executable = interpreter
    multiprocessing.set_executable(interpreter)
    if settings := env.get("DASK_CONFIG"):
        importlib.import_module("dask.config").refresh(paths=[settings])
    paths = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = ["", *(path for path in paths if path not in sys.path)]
    try:
        if line[0] == "-m":
            sys.modules.pop(line[1], None)  # else runpy warns of it
            sys.argv = line[1:]
            runpy.run_module(line[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *line[2:]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(line[1], "<string>", "exec"), main.__dict__)
    finally:
        atexit._run_exitfuncs()


def load() -> None:
    """Import what forks need; there must be no thread but this."""
    from cahlib.core.own_process import uncollected

    handler = logging.NullHandler()  # as a command has one by then; else Dask logs by its own
    logging.getLogger().addHandler(handler)
    with uncollected():  # a fork that looked through all of it would copy all of it
        _import(_LOADED)
    logging.getLogger().removeHandler(handler)


def load_node() -> None:
    """Import what forks need that are Dask's processes on a node, but for cahlib itself."""
    _import(_LOADED_ON_NODES)
    gc.freeze()
    assert "cahlib" not in sys.modules, "a node has what was brought there"


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    # pyarrow's jemalloc has one of its own, which it starts anew in a fork
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert len(threads - {"jemalloc_bg_thd"}) == 1, "in a fork no other thread goes on"


if multiprocessing.parent_process() is None and "forkserver" in " ".join(sys.orig_argv):
    load()
