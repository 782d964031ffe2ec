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
            os._exit(9)

for number, folder in enumerate(map(Path, sys.argv[1:])):
    steps = number * {stride}
    if os.fork() == 0:
        sys.addaudithook(die)
        {work}
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


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
