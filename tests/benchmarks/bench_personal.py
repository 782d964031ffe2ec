"""How well personal data are told from other numbers, on labelled lines.

    python -m tests.benchmarks.bench_personal [--small]

Each line of tests/data/personal.tsv holds one kind of personal data, or none ("-"). Given are
precision and recall by line, and the lines that went wrong.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cahlib.crawl.personal import mask_personal_data
from tests.benchmarks.common import parser

DATA = Path(__file__).parent.parent / "data"
SETS = ("personal", "personal-unseen", "personal-unseen-2")


class Rates(NamedTuple):
    """What came of the lines."""

    precision: float
    recall: float
    false: list[str]  #: masked, without need
    missed: list[str]


def measured(name: str = "personal") -> Rates:
    """Return how the lines of a set were masked."""
    with (DATA / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
        rows = [
            (row["holds"], row["text"])
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    found = {text for _, text in rows if mask_personal_data(text) != text}
    false = [text for holds, text in rows if holds == "-" and text in found]
    missed = [text for holds, text in rows if holds != "-" and text not in found]
    held = sum(holds != "-" for holds, _ in rows)
    return Rates(1 - len(false) / len(found), 1 - len(missed) / held, false, missed)


def main(arguments: Sequence[str]) -> None:
    parser(__doc__, arguments).parse_args(arguments)
    for name in SETS:
        rates = measured(name)
        print(f"{name}: precision {rates.precision:.1%}, recall {rates.recall:.1%}")
        for text in rates.false:
            print(f"  false:  {text}")
        for text in rates.missed:
            print(f"  missed: {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
