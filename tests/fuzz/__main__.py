"""Fuzzes the readers of strangers' bytes for a while, guided by what each input makes them do.

    python -m tests.fuzz [TARGET…] [--seconds 300]

With atheris where it is installed (its wheels are for x86-64 and some versions of Python), else by
plain chance. What breaks a reader is written to a file, which is named. The target `suite` is the
tests that use hypothesis, with examples drawn at random; for one that fails, the line to add to its
test is printed.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

#: The packages and modules that read strangers' bytes.
WATCHED = [f"cahlib.{name}" for name in ("crawl", "fetch", "image", "parcel", "lists")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=300, help="for each [300]")
    parser.add_argument("--guided", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.guided:
        _guided(chosen.targets[0], chosen.seconds)
    from tests.fuzz.targets import TARGETS

    every = [*TARGETS, "suite"]
    if unknown := set(chosen.targets) - set(every):
        parser.error(f"{min(unknown)} is not a target; choose from {', '.join(every)}")
    seconds, failed = chosen.seconds, []
    for name in chosen.targets or every:
        if name == "suite":
            failed += [name] * (not _suite(seconds))
        elif find_spec("atheris"):
            line = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(seconds)]
            failed += [name] * bool(subprocess.run([*line, "--guided"]).returncode)
        else:
            print(f"{name}: {_blind(name, seconds):,} inputs by chance")
    if failed:
        raise SystemExit(
            f"broken: {', '.join(failed)}; the inputs are in crash-* files here, or printed above"
        )


def _guided(name: str, seconds: int) -> None:
    """By atheris; it ends the process. What it watches must not have been imported before."""
    import atheris

    with atheris.instrument_imports(include=WATCHED):
        from tests.fuzz.targets import TARGETS
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(TARGETS[name].beginnings):
            (Path(corpus) / str(number)).write_bytes(data)
        options = [f"-max_total_time={seconds}", "-max_len=65536", "-rss_limit_mb=2048"]
        atheris.Setup([sys.argv[0], corpus, *options, "-timeout=20"], TARGETS[name].read)
        atheris.Fuzz()


def _blind(name: str, seconds: int) -> int:
    """By chance alone; how many inputs there were."""
    from tests.fuzz.targets import TARGETS

    chance, end, count = random.Random(name), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = changed(chance, chance.choice(TARGETS[name].beginnings))
        try:
            TARGETS[name].read(data)
        except Exception:
            Path(f"crash-{name}").write_bytes(data)
            raise
        count += 1
    return count


def _suite(seconds: int, *tests: str) -> bool:
    """Run tests again and again, or others; whether none failed."""
    patches, end = Path(".hypothesis/patches"), time.monotonic() + seconds
    known = set(patches.glob("*"))
    line = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "hypothesis", *tests]
    while (left := end - time.monotonic()) > 0:
        run = subprocess.Popen([*line, "--hypothesis-profile=fuzz"])
        try:
            status = run.wait(left)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGINT)  # so that a failure that was found is shown
            status = run.wait()
        if status not in (0, 2):  # 2: interrupted
            for patch in sorted(set(patches.glob("*")) - known):
                print(f"\nAdd this to the tests (git apply {patch}):\n\n{patch.read_text()}")
            return False
    return True


def changed(chance: random.Random, data: bytes) -> bytes:
    """The same with a few places changed, cut, doubled, or moved."""
    for _ in range(chance.randint(0, 6)):
        at, end = sorted(chance.choices(range(len(data) + 1), k=2))
        end = min(end, at + 200)
        middle = chance.choice(
            (b"", data[at:end] * 2, chance.randbytes(chance.randint(1, 8)), b"\0" * (end - at))
        )
        data = data[:at] + middle + data[end:]
    return data


if __name__ == "__main__":
    main()
