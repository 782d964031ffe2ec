"""A run that lasts, and one that is disturbed: what it costs in time, and whether anything is lost.

Half of the time a run of synthetic shards is left alone, and the memory and the open files of each
of its processes are looked at every second. In the other half something happens every few seconds:
a scraper or the whole run is killed, Ctrl-C is pressed, the network is cut, the disk is full (root
only: the dataset lies on a small disk of its own); the same command is given again until all is
done. At the end each shard has to be in the dataset exactly once, and `cah verify` clean.
"""

from __future__ import annotations

import gzip
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq

from cahlib.core.config import Job, replace_settings
from cahlib.core.records import DropReason, Stage
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.demo.web import Answer, Request
from tests.world import command, forks, small

NAME = "CC-MAIN-2024-10"
LINKS = 40  #: in a shard
_LISTED = 100_000  # WAT files that the crawl has
_DISK = 8 << 30  # bytes; an hour fills some 3 GiB of it


class Crawl(small.Pictures):
    """Common Crawl's server and the web that it is of; both can be cut off.

    A crawl of another year has other files.
    """

    def __init__(self, links: int = LINKS, *, shared: bool = False, **place: Any) -> None:
        super().__init__(**place)
        self.cut, self._links, self._shared = False, links, shared

    def answer(self, request: Request) -> Answer:  # type: ignore[override]
        if self.cut:
            return Answer(raw=True)
        if request.url.endswith("wat.paths.gz"):
            return Answer(body=_listed(request.url.split("/")[-2]))
        if request.url.endswith(".wat.gz"):
            number = int(request.url[-17:-12])
            return Answer(body=small.file(number, self._links, shared=self._shared))
        return super().answer(request)


@cache
def _listed(crawl: str) -> bytes:
    first = 0 if crawl == NAME else _LISTED // 2
    names = (
        f"crawl-data/{crawl}/segments/1/wat/{crawl[:12]}-{n:05}.warc.wat.gz\n"
        for n in range(first, _LISTED)
    )
    return gzip.compress("".join(names).encode())


@dataclass
class Watch:
    """Looks at the processes of a run every second."""

    seen: dict[tuple[str, int], list[tuple[float, float, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )  #: by kind and id: seconds, MiB, open files

    def look(self, process: forks.Process) -> None:
        with suppress(psutil.Error):
            judge = psutil.Process(process.pid)
            for each in [judge, *judge.children(recursive=True)]:
                with suppress(psutil.Error):
                    kind = "judge" if each == judge else _kind(each)
                    now = (time.monotonic(), each.memory_info().rss / 2**20, each.num_fds())
                    self.seen[kind, each.pid].append(now)

    def told(self) -> Iterator[str]:
        """A line a process that lived long enough."""
        for (kind, pid), looks in sorted(self.seen.items()):
            at, memory, files = (np.array(each) for each in zip(*looks, strict=True))
            # the second half of its life, when all is loaded, and not its end
            late = (at > (at[0] + at[-1]) / 2) & (at < at[-1] - 3)
            if late.sum() < 10:
                continue
            slope = np.polyfit(at[late] / 60, memory[late], 1)[0]
            yield (
                f"  {kind:8} {pid:8}  {at[-1] - at[0]:5.0f} s, {memory.max():7.1f} MiB at most, in "
                f"the second half {slope:+.2f} MiB a minute, files {files[late][0]} to "
                f"{files[late][-1]}, {files.max()} at most"
            )


def _kind(process: psutil.Process) -> str:
    return "scraper" if "fork_server" in " ".join(process.cmdline()) else "helper"


def soak(seconds: float, seed: int) -> bool:
    """Whether all went well; prints what was seen."""
    with disk() as (folder, size), Crawl() as web:
        job = small.job(Path(), folder / "dataset", web, attempts=100)
        job = replace_settings(
            job, crawl=NAME, base_url=f"http://{web.address}/", forms=("embeddings",)
        )

        def fill(full: bool) -> bool:
            # No larger than what is in it: fails if that has grown meanwhile.
            return size(shutil.disk_usage(folder).used if full else 0)

        rate = _calibrated(job)
        calm = max(8, round(rate * seconds / 2))
        watch, started = Watch(), time.monotonic()
        code = _launched(replace_settings(job, shards=calm), watch)
        took = time.monotonic() - started
        print(f"calm: {calm} shards in {took:.0f} s, exit {code}", *watch.told(), sep="\n")
        every = calm + max(8, round(rate * seconds / 4))
        events, launches = _chaos(
            replace_settings(job, shards=every), web, fill, random.Random(seed)
        )
        print(f"disturbed: {every - calm} shards in {launches} launches; {dict(events)}")
        return _whole(folder / "dataset", every) and code == 0


def _calibrated(job: Job) -> float:
    """Shards a second, of a run that has begun."""
    _launched(replace_settings(job, shards=2), Watch())
    started = time.monotonic()
    _launched(replace_settings(job, shards=2), Watch())
    idle = time.monotonic() - started  # what a launch takes that finds nothing to do
    started = time.monotonic()
    _launched(replace_settings(job, shards=62), Watch())
    return 60 / max(time.monotonic() - started - idle, 1.0)


def _launched(job: Job, watch: Watch) -> int:
    """The exit code of a launch that is left alone."""
    with _started(job) as process:
        while process.poll() is None:
            watch.look(process)
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
    return process.returncode


@contextmanager
def _started(job: Job) -> Iterator[forks.Process]:
    """A launch, which does not outlive this."""
    process = command.started("run", *command.options(job))
    reader = threading.Thread(target=process.stdout.read)  # type: ignore[union-attr]
    reader.start()
    try:
        yield process
    finally:
        _kill(process)
        reader.join()


def _kill(process: forks.Process) -> None:
    with suppress(psutil.Error):
        left = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        psutil.wait_procs(left, timeout=60)


def _chaos(
    job: Job, web: Crawl, fill: Callable[[bool], bool], chance: random.Random
) -> tuple[Counter[str], int]:
    """Disturb launch after launch until all is done; what happened how often."""
    events, launches = Counter[str](), 0
    while True:
        launches += 1
        with _started(job) as process:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(chance.uniform(4, 16))
                    break
                event = chance.choice(("scraper", "run", "ctrl-c", "network", "disk"))
                events[event] += _happens(event, process, web, fill)
        if process.returncode == 0 and not _left(job):
            return events, launches


def _happens(event: str, process: forks.Process, web: Crawl, fill: Callable[[bool], bool]) -> bool:
    """One disturbance; whether it could be."""
    if event == "scraper":
        with suppress(psutil.Error):
            below = psutil.Process(process.pid).children(recursive=True)
            victims = [each for each in below if _kind(each) == "scraper"]
            for victim in victims[:1]:
                victim.kill()
            return bool(victims)
    elif event == "run":
        _kill(process)
    elif event == "ctrl-c":
        command.press_ctrl_c(process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
    elif event == "network":
        web.cut = True
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        web.cut = False
    elif fill(True):
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        return fill(False)
    else:
        return False
    return True


def _left(job: Job) -> int:
    """Shards that are not in the dataset yet."""
    return job.crawl.shards - sum(1 for _ in read_manifests(job.output.folder))


def _whole(folder: Path, shards: int) -> bool:
    """Whether each shard is there once, with all that its links came to; prints what is not so."""
    manifests = list(read_manifests(folder))
    uids = Counter(pq.read_table(folder / "metadata", columns=["uid"])["uid"].to_pylist())
    lost = sum((each.stats.dropped for each in manifests), Counter[DropReason]())
    cut = {reason.value: n for reason, n in lost.items() if reason.stage is not Stage.READ}
    faults = list(verify(folder))
    if len(manifests) != shards or len({each.shard.id for each in manifests}) != shards:
        faults.append(f"{len(manifests)} shards of {shards}")
    faults += [f"{uid} {n} times" for uid, n in uids.items() if n > 1]
    for each in manifests:
        if each.stats.entered[Stage.CHOOSE] != LINKS or any(map(each.stats.unaccounted, Stage)):
            faults.append(f"{each.shard.id} has not the links that it should")
    faults += [str(path) for path in folder.rglob("*.part")]
    print(
        f"{len(manifests)} shards once each, {len(uids):,} pairs of {shards * LINKS:,} links, "
        f"lost to the cuts {cut}; faults: {faults[:9] or 'none'}"
    )
    return not faults


@contextmanager
def disk() -> Iterator[tuple[Path, Callable[[int], bool]]]:
    """A folder, and what sets the size of its disk (0: large), if it is one of its own."""
    with tempfile.TemporaryDirectory() as work:

        def mounted(options: str) -> bool:
            line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", work]
            return os.geteuid() == 0 and not subprocess.run(line, capture_output=True).returncode

        own = mounted(f"size={_DISK}")

        def resize(size: int) -> bool:
            return own and mounted(f"remount,size={size or _DISK}")

        try:
            yield Path(work), resize
        finally:
            if own:
                subprocess.run(["umount", "--lazy", work], check=True)
