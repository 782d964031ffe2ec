"""Processes that die at one step of what they do, each at a later one than the process before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.world import forks

_SCRIPT = """
import os, sys
from pathlib import Path
{imports}

def die(event, args):
    global steps
    if event == "os.rename":
        steps -= 1
        if steps < 0:
            steps = sys.maxsize  # where coverage is measured, the end renames a file as well
            os._exit(9)

for number, folder in enumerate(map(Path, sys.argv[1:])):
    steps = number * {stride}
    if os.fork() == 0:
        sys.addaudithook(die)
        {work}
        steps = sys.maxsize
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


_RANDOM = """
import os, random, signal, sys
from pathlib import Path
{imports}

def step(event, args):
    global steps
    if event in {events}:
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

moments = random.Random({seed})
steps, last, (read, write) = 0, None, os.pipe()
for folder in map(Path, sys.argv[1:]):
    if os.fork() == 0:
        sys.addaudithook(step)
        {work}
        if last is None:
            os.write(write, str(steps).encode())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
    whole = whole if last else int(os.read(read, 20))
    last = moments.randrange(1, whole * 9 // 10)  # of the next one; not all take as many steps
"""

#: Steps in which a process touches what stays after it.
_EVENTS = "open", "os.mkdir", "os.remove", "os.rename", "socket.connect", "sqlite3.connect"


def at_random(imports: str, work: str, folders: Sequence[Path], *, seed: int = 0) -> list[str]:
    """Return the exit codes of forks that do ``work`` with their ``folder``.

    The first one is left alone: 0. The others are killed at random steps of as many: -9.
    """
    script = _RANDOM.format(imports=imports, work=work, events=_EVENTS, seed=seed)
    ran = forks.run(["-c", script, *map(str, folders)], env=os.environ)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def before_each_renaming(
    imports: str, work: str, folders: Sequence[Path], *, stride: int = 1
) -> list[str]:
    """Return the exit codes of forks that do ``work`` with their ``folder``: 9 for those that died.

    That of the first folder dies before its first renaming, the next ``stride`` renamings later.
    """
    script = _SCRIPT.format(imports=imports, work=work, stride=stride)
    ran = forks.run(["-c", script, *map(str, folders)], env=os.environ)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()
