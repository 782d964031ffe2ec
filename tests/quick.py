"""`make quick`: the tests without a process, a server or a model; the others are skipped.

No list says which these are. A test is skipped at the moment in which it, a fixture of its or the
module that it is in begins what takes long, so that none is quick that is not, and each that
becomes quick is in.
"""

from __future__ import annotations

import platform
import socket
import sys

import pytest

#: Imports that take seconds, and after which models are loaded or processes started.
_SLOW = {"torch", "open_clip", "tensorflow", "distributed", "playwright"}
#: What is told when a process is started, and the module that multiprocessing does it by.
_STARTS = {
    "subprocess.Popen", "os.fork", "os.posix_spawn", "multiprocessing.popen_spawn_posix",
    "multiprocessing.popen_forkserver",
}  # fmt: skip
#: Sockets of servers and their clients, by family and type. Heard of when one is made: where one
#: that exists may not listen, asyncio leaves it open.
_CONNECTIONS = {(family, socket.SOCK_STREAM) for family in (socket.AF_INET, socket.AF_INET6)}


def enforce() -> None:
    """Skip, from now on and until this process ends, whatever begins what takes long."""
    platform.processor()  # asks a process, once
    sys.addaudithook(_heard)


def _heard(event: str, arguments: tuple[object, ...]) -> None:
    name = str(arguments[0]) if event == "import" else event
    if name in _STARTS:
        raise pytest.skip.Exception("not quick: starts a process", allow_module_level=True)
    if event == "socket.__new__" and arguments[1:3] in _CONNECTIONS:
        raise pytest.skip.Exception("not quick: has a server", allow_module_level=True)
    if event == "import" and (library := name.partition(".")[0]) in _SLOW:
        raise pytest.skip.Exception(f"not quick: imports {library}", allow_module_level=True)
