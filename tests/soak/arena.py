"""Where datasets are destroyed: a small crawl and its web, wires to it, a disk, and sound datasets.

All of a series happens in one folder, `now`, so that the URL of a dataset is the same each time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cahlib.core.config import Job, replace_settings
from tests.soak.lasting import NAME, Crawl, disk
from tests.soak.launches import Ended, Launch, Launcher
from tests.soak.state import State, state, uids
from tests.world import command, hosts, small
from tests.world.wires import WEB, Wires

LINKS = 6  #: in a shard; one of them is in every shard
SHARDS = 4
FOREIGN = "CC-MAIN-2023-10"
MODES = "folder", "url"
#: The key of a pair that each shard has a link to, and one of them keeps.
SHARED = hashlib.md5("".join(small.SHARED).encode()).hexdigest()
_SLOW = dict.fromkeys(("connect_timeout", "read_timeout"), 20) | {"total_timeout": 60}


@dataclass(kw_only=True)
class Arena:
    """What every series needs."""

    work: Path
    launch: Launcher
    job: Job  #: of the folder
    wires: Wires | None
    size: Callable[[int], bool]  #: sets the size of the disk, if it can be
    used: Callable[[], int]  #: bytes on it
    golden: State  #: the undisturbed dataset
    keys: dict[str, list[str]]  #: its pairs by shard, but for the one that any of them may have
    modes: tuple[str, ...] = MODES

    @property
    def now(self) -> Path:
        return self.work / "now"

    @property
    def foreign(self) -> Path:
        return self.work / "foreign" / "set"

    def folder(self, mode: str) -> Path:
        """Return the run's folder."""
        return self.now / "here" / "set"

    def place(self, mode: str) -> Path:
        """Return where the dataset is to be in the end."""
        return self.now / "drive" / "set" if mode == "url" else self.folder(mode)

    def named(self, mode: str, place: Path) -> str:
        """Return a place as a user types it."""
        return place.as_uri() if place == self.now / "drive" / "set" else str(place)

    def run(self, mode: str, **other: object) -> tuple[str, ...]:
        """Return the command that makes the dataset."""
        output = self.place(mode).as_uri() if mode == "url" else str(self.folder(mode))
        return "run", *command.options(replace_settings(self.job, **{"output": output, **other}))

    def begin(self, mode: str, shards: int) -> None:
        """Have a sound dataset of so many shards, or nothing."""
        shutil.rmtree(self.now, ignore_errors=True)
        if shards:
            shutil.copytree(self.saved(mode, shards), self.now)
        (self.now / "here").mkdir(parents=True, exist_ok=True)

    def saved(self, mode: str, shards: int) -> Path:
        """Return where `now` is kept as it was when so many shards were there."""
        return self.work / f"{mode}-{shards}"


@contextmanager
def arena(modes: tuple[str, ...] = MODES, *, wired: bool = True) -> Iterator[Arena]:
    """Make it; with wires, and so with cuts, if this machine lets us."""
    with ExitStack() as stack:
        work, size = stack.enter_context(disk())
        wires = stack.enter_context(Wires("4")) if wired and not hosts.lacking() else None
        if wires:
            with wires.inside(wires.far):
                web = stack.enter_context(Crawl(LINKS, shared=True, host=WEB, port=80))
        else:
            web = stack.enter_context(Crawl(LINKS, shared=True))
        job = replace_settings(
            small.job(Path(), work / "none", web, attempts=3), crawl=NAME, shards=SHARDS,
            base_url=f"http://{web.address}/", **_SLOW,
        )  # fmt: skip
        made = Arena(
            work=work, launch=Launcher(work, wires.near if wires else ""), job=job, wires=wires,
            size=size, used=lambda: shutil.disk_usage(work).used, golden=State(), keys={},
            modes=modes,
        )  # fmt: skip
        _sound(made)
        yield made


def _sound(made: Arena) -> None:
    """Make the sound datasets, and another one that is not ready."""
    for mode in made.modes:
        made.begin(mode, 0)
        for shards in (SHARDS // 2, SHARDS):
            _well(_do(made, made.run(mode, shards=shards)))
            shutil.copytree(made.now, made.saved(mode, shards))
    place = made.place(made.modes[-1])
    made.golden = state(place)
    found = {id: uids(place, id) for id in made.golden.whole}
    assert sum(each.count(SHARED) for each in found.values()) == 1
    made.keys = {id: [uid for uid in each if uid != SHARED] for id, each in found.items()}
    assert len(made.keys) == SHARDS and {len(each) for each in made.keys.values()} == {LINKS - 1}
    made.foreign.parent.mkdir()
    other = {"crawl": FOREIGN, "output": str(made.foreign)}
    _well(_do(made, made.run("folder", shards=2, **other)))
    _do(made, made.run("folder", shards=4, **other), kill_at=20)


def _do(made: Arena, arguments: tuple[str, ...], kill_at: int = 0) -> Ended:
    return made.launch(
        Launch(arguments=arguments, cwd=made.now / "here", kill_at=kill_at, below=(made.work,))
    )


def _well(ended: Ended) -> None:
    assert ended.code == 0, ended.said
