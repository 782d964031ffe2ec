"""How long a user waits before any work is done.

    python -m tests.benchmarks.bench_start [--rounds 5]

`cah --help`; `cah demo`, whose work is small; and `cah demo` in a folder where all is done already,
which needs no torch. Seconds of the clock, and in brackets those of processors, children included.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time

CAH = [sys.executable, "-m", "cahlib.cli"]


def seconds(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds of the clock and of processors."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    end, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return end - start, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            demo = [*CAH, "demo", f"--output={folder}/demo"]
            taken.setdefault("cah --help", []).append(seconds([*CAH, "--help"]))
            taken.setdefault("cah demo", []).append(seconds(demo))
            taken.setdefault("cah demo, when all is done", []).append(seconds(demo))
    for name, each in taken.items():
        clock, used = (statistics.median(part) for part in zip(*each, strict=True))
        print(f"{name:28} {clock:6.2f} s ({used:.2f} s)")


if __name__ == "__main__":
    main()
