"""The command `cah` as a process of its own, or within the tests' own.

Only what is killed, pressed Ctrl-C or has an environment of its own needs a process; those here are
forks, for a start costs the seconds in which it imports torch. How `cah` starts is tried by
`tests.acceptance.test_secrets`, `tests.acceptance.test_bad_input` and others.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import IO

import pytest

from cahlib.commands.cli import main
from cahlib.core.config import Job, settings
from cahlib.guide import read_page
from tests.world import forks
from tests.world.forks import ROOT


def cah(
    *arguments: str | Path | int, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; ``more`` is of its environment."""
    return forks.run(_line(*arguments), env=environment() | more, cwd=cwd)


def said(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """The same in the process of the tests, which imports torch once."""
    line = [*map(str, arguments)]
    try:
        code = main(line)
    except SystemExit as ended:  # argparse's own way to refuse
        code = int(ended.code or 0)
    shown = capsys.readouterr()
    return subprocess.CompletedProcess(line, code, shown.out, shown.err)


def started(
    *arguments: str | Path | int,
    cwd: Path | None = None,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.STDOUT,
    **more: str,
) -> forks.Process:
    """Start a command in a process group of its own, as a terminal does."""
    env = environment() | more
    return forks.start(_line(*arguments), env=env, cwd=cwd, stdout=stdout, stderr=stderr)


def json_keys(command: str) -> list[str]:
    """The keys of a command's JSON object, as the guide names them, sorted."""
    rows = re.findall(r"^\| (`cah .*?) \| (.*) \|$", read_page("formats"), re.MULTILINE)
    [keys] = [each for names, each in rows if f"`cah {command}`" in names]
    return sorted(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", keys)))


def press_ctrl_c(process: forks.Process) -> None:
    """What a terminal does at Ctrl-C: the signal goes to the whole group."""
    os.killpg(process.pid, signal.SIGINT)


def options(job: Job) -> list[str]:
    """The options of `cah run` that make this job."""
    given = []
    for setting in settings():
        value = setting.of(job)
        if value != setting.default:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            given += [f"--{setting.name.replace('_', '-')}", text]
    return given


def _line(*arguments: str | Path | int) -> list[str]:
    return ["-m", "cahlib.commands.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Of a process that shall find this tree's cahlib."""
    return {"CAH_CONTACT": "tests@example.org", **os.environ, "PYTHONPATH": str(ROOT)}
