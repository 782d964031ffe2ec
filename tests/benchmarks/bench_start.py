"""How long a user waits before any work is done.

    python -m tests.benchmarks.bench_start [--rounds 5]

`cah --help`; and `cah demo` in a folder where all is done already, less the import of torch and
open_clip: that is what a launch needs beside them and beside the work itself.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

CAH = [sys.executable, "-m", "cahlib.cli"]
IMPORTS = [sys.executable, "-c", "import torch, open_clip"]


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        demo = [*CAH, "demo", f"--output={folder}/demo"]
        whole = seconds(demo)
        taken = [
            [seconds(each) for each in ([*CAH, "--help"], IMPORTS, demo)] for _ in range(rounds)
        ]
    told, imports, again = (statistics.median(each) for each in zip(*taken, strict=True))
    print(f"cah --help                               {told:6.2f} s")
    print(f"cah demo, the first time                 {whole:6.2f} s")
    print(f"cah demo, when all is done               {again:6.2f} s")
    print(
        f"of both, the import of torch, open_clip  {imports:6.2f} s, the rest of a launch", end=" "
    )
    print(f"{again - imports:.2f} s")


if __name__ == "__main__":
    main()
