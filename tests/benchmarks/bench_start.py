"""How long a user waits before any work is done.

    python -m tests.benchmarks.bench_start [--rounds 5] [--small]

`cah --help`; `cah demo`, whose work is small; and `cah demo` in a folder where all is done already,
which needs no torch. Seconds of the clock, and in brackets those of processors, children included.
The smallest size is `cah --help` alone: a demo takes nine CPU seconds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence

from tests.benchmarks.common import CAH, Found, measured, note, parser


def main(arguments: Sequence[str]) -> None:
    options = parser(__doc__, arguments, rounds=(5, 1)).parse_args(arguments)
    taken: dict[str, list[Found]] = {}
    for _ in range(options.rounds):
        taken.setdefault("cah --help", []).append(measured([*CAH, "--help"]))
        if options.small:
            continue
        with tempfile.TemporaryDirectory() as folder:
            demo = [*CAH, "demo", f"--output={folder}/demo"]
            taken.setdefault("cah demo", []).append(measured(demo))
            taken.setdefault("cah demo, when all is done", []).append(measured(demo))
    for name, each in taken.items():
        clock, used = (statistics.median(one[what] for one in each) for what in ("wall", "cpu"))
        print(f"{name:28} {clock:6.2f} s ({used:.2f} s)")
        key = {"cah --help": "start", "cah demo": "demo"}.get(name, "demo-again")
        note(key, wall=clock, cpu=used)


if __name__ == "__main__":
    main(sys.argv[1:])
