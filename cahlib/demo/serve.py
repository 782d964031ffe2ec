"""The demo's web as a process of its own.

In the process of the run it could not answer while that imports torch, which on a busy machine
takes longer than an image may.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import IO

from cahlib.core.child_process import python_command, unsignalled
from cahlib.core.errors import ConfigError

_AT = "at "


class ServedWeb:
    """A web that another process serves."""

    def __init__(self, said: IO[str]) -> None:
        self._said = said

    @cached_property
    def address(self) -> str:
        """HOST:PORT, once it is served; raise ConfigError if it cannot be."""
        line = self._said.readline().strip()
        if not line.startswith(_AT):
            raise ConfigError(line or "The demo's web could not be started.")
        return line.removeprefix(_AT)


@contextmanager
def served_apart(port: int) -> Iterator[ServedWeb]:
    """Serve the demo's web at a port, 0 for any, until the block is left; do not wait for it."""
    line = python_command("from cahlib.demo.serve import serve_demo; serve_demo()", str(port))
    with unsignalled():
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout
        try:
            yield ServedWeb(process.stdout)
        finally:
            process.kill()


def serve_demo() -> None:
    """Serve the web at the port that is this process's argument, until standard input ends."""
    from cahlib.demo import world

    try:
        with world.build().serve(int(sys.argv[1])) as web:
            print(f"{_AT}{web.address}", flush=True)
            sys.stdin.read()
    except ConfigError as error:
        print(error)
