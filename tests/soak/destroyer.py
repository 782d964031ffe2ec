"""Destroys datasets at random and looks whether they come back: nothing that was whole may change.

A series begins with a sound dataset, part of one, or nothing. In each of its rounds files are
damaged or lost, and a command is given that may be killed or cut off. After each one every shard
that was whole before is so still, byte for byte; every shard that is whole has the pairs that it
has undisturbed; an exit code of 0 means that all is there. At the end of a series the advice that
is printed is followed until the dataset equals the undisturbed one.
"""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cahlib.core.errors import ConfigError
from cahlib.dataset.maintain.verify import find_problems
from cahlib.ledger.local import committed_shards
from tests.soak import damages, launches
from tests.soak.arena import FOREIGN, SHARDS, SHARED, Arena
from tests.soak.launches import Ended, Launch
from tests.soak.state import State, state, uids

#: Other settings, each of which is to be refused.
OTHERS: tuple[dict[str, object], ...] = (
    {"threshold": 0.99}, {"languages": "de"}, {"resize": 100}, {"consent": "research"},
    {"personal": "mask"}, {"forms": "images"}, {"crawl": FOREIGN}, {"duplicates": "near"},
)  # fmt: skip

#: What happens in a round, and how often in comparison.
STEPS = {
    "run": 2, "kill at": 5, "kill": 1, "ctrl-c": 1, "scraper": 1, "network": 1, "disk": 2,
    "other settings": 2, "repair": 2, "repair killed": 2, "dry run": 1,
}  # fmt: skip


class Found(Exception):
    """Something went wrong that must not; says what."""


@dataclass
class Series:
    """One dataset and what befalls it."""

    arena: Arena
    chance: random.Random
    steps: dict[str, int] = field(default_factory=lambda: STEPS)
    told: list[str] = field(default_factory=list)  #: what happened, line by line
    events: Counter[str] = field(default_factory=Counter)

    def through(self, rounds: int) -> None:
        """Let so many rounds happen, and mend; raise Found."""
        chance, arena = self.chance, self.arena
        self.mode = chance.choice(arena.modes)
        begun = chance.choice((0, SHARDS // 2, SHARDS, SHARDS, SHARDS))
        self._tell(f"{self.mode}, {begun} shards")
        arena.begin(self.mode, begun)
        self.strange = False  # whether another dataset's run directory lies here
        for _ in range(rounds):
            self._befall()
            steps = [step for step in self.steps if self._can(step)]
            step = chance.choices(steps, [self.steps[each] for each in steps])[0]
            self.events[step] += 1
            self._steps()[step]()
        self._mend()

    def _tell(self, line: str) -> None:
        self.told.append(line.replace(str(self.arena.now), "NOW"))

    def _can(self, step: str) -> bool:
        return (
            (step != "network" or self.arena.wires is not None)
            and (step != "disk" or self.arena.size(0))
            and (step != "other settings" or bool(state(self._place).whole))
        )

    @property
    def _place(self) -> Path:
        return self.arena.place(self.mode)

    @property
    def _folder(self) -> Path:
        return self.arena.folder(self.mode)

    @property
    def _places(self) -> list[Path]:
        return list(dict.fromkeys((self._place, self._folder)))

    def _befall(self) -> None:
        """Damage what lies there."""
        saved = self.arena.saved(self.mode, SHARDS // 2) / "here" / "set"
        at = damages.Befall(
            chance=self.chance, place=self._place, folder=self._folder,
            foreign=self.arena.foreign, saved=saved,
        )  # fmt: skip
        for kind in damages.kinds(self.chance, 3):
            if not (self._place.is_dir() and self._folder.is_dir()):
                return
            if what := at.happens(kind):
                self.events[kind] += 1
                self._tell(f"{kind}: {what}")
                self.strange |= "of another" in kind
        for place in self._places:
            self._verified(place)

    def _verified(self, place: Path, *, sound: bool = False) -> list[str]:
        """Hold what `cah verify` finds to what is wrong."""
        own = state(place)
        try:
            found = [
                each.sentence
                for each in find_problems(place, committed_shards(place / "run/ledger.sqlite"))
            ]
        except ConfigError as error:
            if own.whole or own.broken or own.listed:
                raise Found(f"verify of {place}: {error}") from error
            return []
        for name in own.broken:
            if not any(name in each or own.broken[name] in each for each in found):
                raise Found(f"verify does not find shard {name}: {own.broken[name]}")
        for path in own.stray:
            id = next((id for id in own.broken if id in path), "")
            if not any(path in each or (id and id in each) for each in found):
                raise Found(f"verify does not find {path}")
        gone = (own.listed or frozenset()) - own.whole.keys() - own.away
        if gone and not found:
            raise Found(f"verify does not miss {sorted(gone)}")
        if sound and found:
            raise Found(f"verify is not content with {place}: {found}")
        return found

    def _steps(self) -> dict[str, Callable[[], Any]]:
        chance, run = self.chance, self.arena.run(self.mode)
        at = chance.randint(1, chance.choice((30, 200)))
        soon = chance.uniform(0.05, 2)
        return {
            "run": lambda: self._do(run),
            "kill at": lambda: self._do(run, kill_at=at),
            "kill": lambda: self._do(run, (soon, launches.kill)),
            "ctrl-c": lambda: self._do(run, (soon, launches.press_ctrl_c)),
            "scraper": lambda: self._do(run, (3 * soon, launches.kill_scraper), processes=True),
            "network": lambda: self._network(run, soon),
            "disk": lambda: self._disk(run),
            "other settings": lambda: self._other(chance.choice(OTHERS)),
            "repair": lambda: self._repair(chance.choice(self._places)),
            "repair killed": lambda: self._repair(chance.choice(self._places), kill_at=at // 6 + 1),
            "dry run": lambda: self._dry(chance.choice(self._places)),
        }

    def _network(self, run: tuple[str, ...], after: float) -> None:
        wires = self.arena.wires
        assert wires is not None
        cut, mend = self.chance.choice(((wires.unplug, wires.plug), (wires.cut, wires.mend)))
        lasting = self.chance.uniform(0.5, 6)
        try:
            self._do(run, (after, lambda _: cut()), (after + lasting, lambda _: mend()))
        finally:
            mend()

    def _disk(self, run: tuple[str, ...]) -> None:
        room = self.chance.choice((0, 4, 16, 48, 100, 200, 400, 800)) << 10
        self._tell(f"disk has {room} bytes")
        self.arena.size(self.arena.used() + room)
        try:
            ended = self._do(run)
        finally:
            self.arena.size(0)
        if ended.code == 1 and "No space" not in ended.said:
            self._advised(ended)

    def _other(self, other: dict[str, object]) -> None:
        """Have other settings refused, and nothing changed."""
        self._tell(f"other settings: {other}")
        before = _content(self._places)
        ended = self._do(self.arena.run(self.mode, **other), refused=True)
        if ended.code != 2:
            raise Found(f"{other} are not refused: exit {ended.code}")
        if changed := _changed(before, _content(self._places)):
            raise Found(f"{other} were refused, and yet changed are {changed}")

    def _dry(self, place: Path) -> None:
        before = _content([place])
        ended = self._do(("repair", self.arena.named(self.mode, place), "--dry-run"))
        if changed := _changed(before, _content([place])):
            raise Found(f"a dry run changed {changed}")
        if ended.code not in (0, 2):
            raise Found(f"a dry run exits with {ended.code}")

    def _repair(self, place: Path, kill_at: int = 0) -> None:
        """Repair a place; what is said to be somebody else's goes away, as a user does it."""
        ended = self._do(("repair", self.arena.named(self.mode, place)), kill_at=kill_at)
        for name in re.findall(r"(\S+) is not one of a dataset's files", ended.said):
            (place / name).unlink(missing_ok=True)
        own = state(place)
        if ended.code in (0, 1) and (own.broken or own.stray):
            raise Found(f"a repair leaves {own.broken} and {sorted(own.stray)}")

    def _do(
        self, arguments: tuple[str, ...], *events: Any, refused: bool = False, **more: Any
    ) -> Ended:
        """Give a command, and hold what it did to what must be; ``refused``: it may be refused."""
        before = {place: state(place) for place in self._places}
        here = self.arena.now / "here"
        here.mkdir(parents=True, exist_ok=True)
        launch = Launch(
            arguments=arguments, cwd=here, below=(self.arena.now,), events=events,
            **{"processes": self.chance.random() < 0.1, **more},
        )  # fmt: skip
        ended = self.arena.launch(launch)
        shown = f"{arguments[0]} {more or ''} {[round(at, 2) for at, _ in events] or ''}"
        self._tell(f"{shown}: exit {ended.code}")
        self.told += [f"    {line}" for line in ended.said.splitlines() if line][-12:]
        self._unharmed(before)
        self._honest(arguments[0], ended, refused or self._unknown())
        return ended

    def _unharmed(self, before: dict[Path, State]) -> None:
        """Every whole shard is as it was, and is what it is in the undisturbed dataset."""
        after = {place: state(place) for place in self._places}
        for place, own in before.items():
            for id, shard in own.whole.items():
                now = after[place].whole.get(id)
                there = after[self._place].whole.get(id)
                brought = place != self._place and there and there.files == shard.files
                if now != shard and not brought:
                    why = after[place].broken.get(id, "it is gone" if now is None else "replaced")
                    raise Found(f"shard {id} of {place} was whole, and is not as it was: {why}")
        for place, own in after.items():
            again = []
            for id in own.whole:
                if id not in self.arena.keys:
                    raise Found(f"{place} has shard {id}, of another dataset")
                keys = uids(place, id)
                again += [id] * keys.count(SHARED)
                if [key for key in keys if key != SHARED] != self.arena.keys[id]:
                    raise Found(f"shard {id} of {place} has not the pairs that it has undisturbed")
            if len(again) > 1:
                raise Found(f"{place} has a pair in {again}")

    def _unknown(self) -> bool:
        """Whether nothing is left here that says whose the rest is, or only what is another's."""
        own = state(self._folder)
        return self.strange or not (own.whole or own.broken or own.away or own.listed)

    def _honest(self, command: str, ended: Ended, refused: bool) -> None:
        """The exit code and what is said are true."""
        if ended.faults:
            raise Found("; ".join(ended.faults))
        if "Traceback" in ended.said or ended.code not in (0, 1, 2, 3, 130, -9):
            raise Found(f"{command} ends with {ended.code} and no sentence")
        if ended.code in (1, 2, 3) and "cah: " not in ended.said and command == "run":
            raise Found(f"{command} ends with {ended.code} and says nothing")
        if command != "run":
            return
        if ended.code == 2 and not refused:
            raise Found("the same command is refused")
        own = state(self._place)
        lacking = self.arena.keys.keys() - own.whole.keys() - own.hidden - self._unread(own)
        if ended.code == 0 and lacking:
            raise Found(f"exit 0 although shards lack: {sorted(lacking)}")

    def _unread(self, own: State) -> set[str]:
        """Return the shards whose manifest at the URL is damaged and has its size: a run that has
        one in its folder lists what is there, and reads it not."""
        if self._folder == self._place:
            return set()
        here, there = (
            {path.stem: path.stat().st_size for path in (at / "shards").glob("*.json")}
            for at in (self._folder, self._place)
        )
        # the folder's may name the place instead of null
        named = len(json.dumps(self._place.as_uri())) - len("null")
        return {
            id for id, why in own.broken.items()
            if why == "manifest" and here.get(id, 0) - there[id] in (0, named)
        }  # fmt: skip

    def _advised(self, ended: Ended) -> list[str]:
        """Return the places that a run says to repair; it has to say so, or something else."""
        advice = re.findall(r"`cah repair ('[^']*'|[^\s`]+)` removes", ended.said)
        if not advice and "tries them again" not in ended.said and ended.code == 1:
            raise Found("a run fails, and does not say what to do")
        return [shlex.split(each)[0] for each in advice]

    def _mend(self) -> None:
        """Follow the advice until all is there; then the dataset is the undisturbed one."""
        for _ in range(4):
            for place in self._places:
                if place.is_dir() and self._verified(place):
                    self._repair(place)
            ended = self._do(self.arena.run(self.mode))
            # at a place that held no dataset, only now can rubbish be told from it
            if ended.code == 0 and not self._verified(self._place):
                break
            self._obey(ended)
        else:
            raise Found("four repairs and launches have not mended it")
        own = state(self._place)
        if own.whole.keys() != self.arena.keys.keys() or own.broken or own.stray:
            raise Found(f"mended, it has {sorted(own.whole)}, {own.broken} and {sorted(own.stray)}")
        if not any(SHARED in uids(self._place, id) for id in own.whole):
            raise Found("mended, it lacks the pair that any shard may have")
        self._verified(self._place, sound=True)
        if self._do(("verify", self.arena.named(self.mode, self._place))).code:
            raise Found("mended, it is not verified")

    def _obey(self, ended: Ended) -> None:
        """Take away what a refused run calls somebody else's."""
        if ended.code == 2 and "which the dataset's would overwrite" in ended.said:
            for name in ("report.html", "README.md"):
                (self._folder / name).unlink(missing_ok=True)
            self._tell("report and card are taken out")
        elif ended.code == 2 and self.strange:  # another's run directory is taken out
            shutil.rmtree(self._folder / "run", ignore_errors=True)
            self.strange = False
            self._tell("run/ is taken out")


def _content(places: list[Path]) -> dict[str, bytes]:
    """The files of a dataset, and the job of its run."""
    found = (path for place in places for path in place.rglob("*") if path.is_file())
    return {
        str(path): path.read_bytes()
        for path in found
        if "/run/" not in str(path) or path.name == "job.json" or path.parent.name == "parcels"
    }


def _changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """What differs, but for what a killed launch had left and the file that keeps run/ apart."""
    names = {name for name in before | after if before.get(name) != after.get(name)}
    left = (".part", ".gitignore")
    return sorted(name for name in names if not name.endswith(left))


def destroy(arena: Arena, seed: str, rounds: int) -> tuple[Series, str]:
    """Return a series by its seed, and what went wrong in it, or ""."""
    series = Series(arena, random.Random(seed))
    try:
        series.through(rounds)
    except Found as found:
        return series, str(found)
    return series, ""


def serieses(arena: Arena, seed: int, first: int = 0) -> Iterator[tuple[Series, str]]:
    """Return series after series, each of some rounds, and what went wrong."""
    number = first
    while True:
        chance = random.Random(f"{seed}-{number}")
        yield destroy(arena, f"{seed}-{number}", chance.randint(1, 6))
        number += 1
