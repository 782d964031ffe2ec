"""Environments that hold the built wheel of cahlib and what one of its extras brings, no more.

Nothing is downloaded: an environment links to the packages that are installed here, those that the
wheel's own metadata asks for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.world.command import environment

ROOT = Path(__file__).parent.parent.parent


def wheel(folder: Path) -> Path:
    """Build the wheel as pip does, from a copy: setuptools leaves its traces beside the source."""
    source = folder / "source"
    shutil.copytree(ROOT / "cahlib", source / "cahlib", ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    script = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=source, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


#: Does commands one after the other, as `cah` does each, and says how they ended.
_SCRIPT = """
import contextlib, io, json, sys
from cahlib.commands.cli import main

def did(line):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        return [main(line), out.getvalue(), errors.getvalue()]

if __name__ == "__main__":  # workers import it as well
    answers = [did(line) for line in json.loads(sys.argv[1])]
    print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Environment:
    """An environment on disk."""

    folder: Path
    packages: Path

    def start(self, *line: object, cwd: Path) -> subprocess.Popen[str]:
        """Start `cah`, or a script, as a shell does, from which nothing of this source is found."""
        unwanted = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
        return subprocess.Popen(
            [self.folder / "bin" / "python", *map(str, line)],
            cwd=cwd, env={k: v for k, v in environment().items() if k not in unwanted}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def cah(self, lines: Sequence[Sequence[object]], *, cwd: Path) -> list[tuple[int, str, str]]:
        """Do commands in one process, which imports once: exit code and what each printed."""
        script = self.folder / "commands.py"
        script.write_text(_SCRIPT)
        given = json.dumps([[str(word) for word in line] for line in lines])
        process = self.start(script, given, cwd=cwd)
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        return [tuple(each) for each in json.loads(out.splitlines()[-1])]


def made(folder: Path, wheel: Path, extra: str) -> Environment:
    """Make the environment of an extra; "" is the base install."""
    venv.create(folder, symlinks=True, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    unpacked = wheel.with_name("unpacked")
    if not unpacked.exists():  # once for all extras, so that Python compiles it once
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    for each in unpacked.iterdir():
        (packages / each.name).symlink_to(each)
    [about] = packages.glob("cahlib-*.dist-info")
    for each in _needed(PathDistribution(about), {extra}).values():
        _link(each, packages)
    return Environment(folder, packages)


def _needed(package: Distribution, extras: set[str]) -> dict[str, Distribution]:
    """What a package with these extras needs, and what that needs, by name."""
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(package, extra) for extra in {"", *extras}]
    while waiting:
        owner, extra = waiting.pop()
        for line in owner.requires or ():
            wanted = Requirement(line)
            if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(wanted.name)
            found.setdefault(name, distribution(name))
            new = {(name, each) for each in {"", *wanted.extras}} - done
            done |= new
            waiting += [(found[name], each) for _, each in new]
    return found


def _link(package: Distribution, folder: Path) -> None:
    """Link a package's files; a folder without __init__.py may belong to several packages."""
    for file in package.files or ():
        parts = file.parts
        if parts[0] in ("..", "__pycache__") or file.suffix == ".pth":
            continue
        top = Path(str(package.locate_file(parts[0])))
        whole = top.is_file() or (top / "__init__.py").exists() or top.suffix == ".dist-info"
        name = parts[0] if whole or len(parts) == 1 else os.path.join(*parts[:2])
        link = folder / name
        if not link.is_symlink():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(Path(str(package.locate_file(name))))
