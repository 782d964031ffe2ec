"""What befalls the files of a dataset and of its run directory while nobody runs."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Befall:
    """Where things happen, and by which chance."""

    chance: random.Random
    place: Path  #: of the dataset: the run's folder, or what its URL names
    folder: Path  #: of the run
    foreign: Path  #: another dataset of another crawl
    saved: Path  #: of an earlier state of this run's folder, if it exists

    def happens(self, kind: str) -> str:
        """Let one thing happen; return what it was, "" if it cannot be."""
        return KINDS[kind](self) or ""

    def any_file(self) -> Path | None:
        """Return a file by chance: each kind of file is as likely as another."""
        kinds: dict[str, list[Path]] = {}
        for root in {self.place, self.folder}:
            for path in sorted(root.rglob("*")):
                if path.is_file() and path.name not in ("lock", ".lock"):
                    kinds.setdefault(_kind(path.relative_to(root)), []).append(path)
        return self.chance.choice(kinds[self.chance.choice(sorted(kinds))]) if kinds else None


def _kind(path: Path) -> str:
    """Return what all shards' files of a kind share; each other file is a kind of its own."""
    if path.parts[0] == "run":
        return path.as_posix()
    return f"{path.parts[0]}{path.suffix if len(path.parts) > 1 else ''}"


def _file(change: Callable[[random.Random, bytes], bytes | None]) -> Callable[[Befall], str]:
    def happens(at: Befall) -> str:
        path = at.any_file()
        if path is None:
            return ""
        data = path.read_bytes()
        changed = change(at.chance, data)
        if changed is None:
            path.unlink()
        elif changed == data:
            return ""
        else:
            path.write_bytes(changed)
        return str(path)

    return happens


def _flip(chance: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def _zero(chance: random.Random, data: bytes) -> bytes:
    at = _PAGE * chance.randrange(len(data) // _PAGE + 1)
    return data[:at] + bytes(min(_PAGE, len(data) - at)) + data[at + _PAGE :]


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))] if data else data


def _copy(at: Befall) -> str:
    """A cloud drive has two of a file and knows not which."""
    paths = sorted(p for p in at.place.rglob("*") if p.is_file() and "run" not in _in(at, p))
    if not paths:
        return ""
    path = at.chance.choice(paths)
    name = at.chance.choice(
        ("{0} (1){1}", "{0} (Ada's conflicted copy 2026-11-28){1}",
         "{0}.sync-conflict-20261128-101112-ABCDEF7{1}")
    ).format(path.stem, path.suffix)  # fmt: skip
    changed = at.chance.choice((_flip, _cut, lambda chance, data: data))
    path.with_name(name).write_bytes(changed(at.chance, path.read_bytes()))
    return str(path.with_name(name))


def _in(at: Befall, path: Path) -> tuple[str, ...]:
    return path.relative_to(at.place).parts[:1]


def _lose(*names: str) -> Callable[[Befall], str]:
    def happens(at: Befall) -> str:
        lost = []
        for root in dict.fromkeys((at.place, at.folder)):
            for name in names:
                for path in root.glob(name):
                    lost.append(str(path))
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return ", ".join(lost)

    return happens


def _lose_shard(at: Befall) -> str:
    ids = sorted(path.stem for path in (at.place / "shards").glob("*.json"))
    if not ids:
        return ""
    lost = at.chance.choice(ids)
    for path in at.place.rglob(f"*{lost}*"):
        if "run" not in _in(at, path):
            path.unlink()
    return lost


def _swap(at: Befall) -> str:
    """Two files of one folder have each other's name."""
    folders = [path for path in sorted(at.place.iterdir()) if path.is_dir() and path.name != "run"]
    folders = [path for path in folders if len(list(path.glob("[!.]*"))) > 1]
    if not folders:
        return ""
    one, two = at.chance.sample(sorted(at.chance.choice(folders).glob("[!.]*")), 2)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    return f"{one}, {two}"


def _foreign_run(at: Befall) -> str:
    """The run directory of another dataset is copied over this one's."""
    return _run_of(at, at.foreign)


def _old_run(at: Befall) -> str:
    """The run directory comes back from a backup."""
    return _run_of(at, at.saved) if (at.saved / "run").is_dir() else ""


def _run_of(at: Befall, other: Path) -> str:
    shutil.rmtree(at.folder / "run", ignore_errors=True)
    shutil.copytree(other / "run", at.folder / "run")
    return str(at.folder / "run")


def _foreign_ledger(at: Befall) -> str:
    """The same of the ledger alone."""
    if not (at.folder / "run").is_dir():
        return ""
    _lose("run/ledger.sqlite*")(at)
    shutil.copy(at.foreign / "run/ledger.sqlite", at.folder / "run/ledger.sqlite")
    return str(at.folder / "run/ledger.sqlite")


def _rubbish(at: Befall) -> str:
    """Something is left of writes that never ended."""
    folders = [path for path in at.place.iterdir() if path.is_dir()]
    if not folders:
        return ""
    path = at.chance.choice(sorted(folders)) / at.chance.choice((".x.tar.part", ".x.json.part"))
    path.write_bytes(b"{}")
    return str(path)


KINDS: dict[str, Callable[[Befall], str | None]] = {
    "delete": _file(lambda chance, data: None),
    "flip": _file(_flip),
    "truncate": _file(_cut),
    "zero": _file(_zero),
    "empty": _file(lambda chance, data: b""),
    "conflicted copy": _copy,
    "lose run": _lose("run"),
    "lose ledger": _lose("run/ledger.sqlite*"),
    "lose dataset.json": _lose("dataset.json"),
    "lose run and dataset.json": _lose("run", "dataset.json"),
    "lose the manifests": _lose("shards"),
    "lose a shard": _lose_shard,
    "lose the tars": _lose("images"),
    "swap": _swap,
    "run of another": _foreign_run,
    "ledger of another": _foreign_ledger,
    "run of earlier": _old_run,
    "rubbish": _rubbish,
}


def kinds(chance: random.Random, most: int) -> Iterator[str]:
    """Draw some; changes of single files are the most frequent."""
    for _ in range(chance.randint(0, most)):
        yield chance.choice([*KINDS, *list(KINDS)[:5] * 3])
