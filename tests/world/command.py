"""The command `cah` as a process of its own, as a user starts it, or within the tests' own.

A process costs the seconds in which it imports torch; only what is killed, or is somebody else's
environment, needs one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cahlib.cli import main
from cahlib.config import Job, settings

ROOT = Path(__file__).parent.parent.parent


def cah(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        _line(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True
    )


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


def started(*arguments: str | Path | int, **more: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        _line(*arguments),
        env=environment() | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
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
    return [sys.executable, "-m", "cahlib.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Of a process that shall find this tree's cahlib."""
    return {"CAH_CONTACT": "tests@example.org", **os.environ, "PYTHONPATH": str(ROOT)}
