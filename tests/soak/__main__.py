"""Runs and trackers that last and are disturbed, datasets that are destroyed: is anything lost?

    python -m tests.soak [--minutes 60] [--seed 1] [--only lasting|destroyed|community] [--first N]

A third of the time a run lasts, and is disturbed (`tests.soak.lasting`), a third a tracker is
killed while a fifth of its workers lie (`tests.soak.community`); in the rest datasets are
destroyed at random, series by series, and mended (`tests.soak.destroyer`). A series depends on
the seed and its number alone: ``--only destroyed --first N`` begins with it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter

from tests.soak import community
from tests.soak.arena import arena
from tests.soak.destroyer import serieses
from tests.soak.lasting import soak


def destroyed(seconds: float, seed: int, first: int) -> bool:
    """Whether nothing went wrong in series after series; prints what was seen."""
    events, faults, number, end = Counter[str](), 0, first, time.monotonic() + seconds
    with arena() as made:
        for series, fault in serieses(made, seed, first):
            events += series.events
            if fault:
                faults += 1
                shown = "\n  ".join(series.told)
                print(f"series {number} of seed {seed}: {fault}\n  {shown}", flush=True)
            number += 1
            if sys.stderr.isatty():
                print(f"\r{number - first} series", end="", file=sys.stderr)
            if time.monotonic() > end:
                break
    print(f"destroyed: {number - first} series of seed {seed}, {faults} faults; {dict(events)}")
    return not faults


def main() -> None:
    """Do all, or one, for so many minutes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("lasting", "destroyed", "community"))
    parser.add_argument("--first", type=int, default=0, help="number of the first series")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left behind
    seconds = 60 * chosen.minutes / (1 if chosen.only else 3)
    print(f"seed {chosen.seed}", flush=True)
    well = chosen.only not in (None, "lasting") or soak(seconds, chosen.seed)
    if chosen.only in (None, "community"):
        community.soak(seconds, chosen.seed)  # raises if the books are wrong
    if chosen.only in (None, "destroyed"):
        well = destroyed(seconds, chosen.seed, chosen.first) and well
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
