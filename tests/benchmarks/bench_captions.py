"""How well the language of captions is told, by the caption alone and by its page as well.

    python -m tests.benchmarks.bench_captions [--small]

Captions of 22 languages with their pages are in tests/data/captions.tsv; where "declared" is "-",
the page does not say its language. Given are, by `--language-evidence`: the share of each
language's captions that are kept where that language is wanted, the share of English captions of
at most 30 letters, and the share of other captions that are kept as English.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

from cahlib.core.config import Crawl
from cahlib.core.records import Stats
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.wat import Link, Meta, Page
from tests.benchmarks.common import parser

DATA = Path(__file__).parent.parent / "data"
SETS = ("captions", "captions-unseen", "captions-unseen-2")
SHORT = 30


class Rates(NamedTuple):
    """Shares of captions."""

    recall: dict[str, float]  #: by language
    short_english: float
    false_english: float
    false: list[str]  #: the captions of other languages that are kept as English


def captions(name: str = "captions") -> list[dict[str, str]]:
    """Return the labelled captions of a set."""
    with (DATA / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def kept(rows: list[dict[str, str]], language: str, evidence: str) -> set[tuple[str, str]]:
    """Return page and text of the captions that are kept where a language is wanted."""
    options = Crawl(languages=(language,), language_evidence=evidence)
    pages = []
    for number, of_page in groupby(rows, key=lambda row: row["page"]):
        shown = list(of_page)
        links = [Link("IMG@/src", f"/{n}.jpg", row["text"]) for n, row in enumerate(shown)]
        declared = shown[0]["declared"]
        metas = [] if declared == "-" else [Meta(name="HTML@/lang", content=declared)]
        pages.append(Page(url=f"http://p{number}.com/", base="", links=links, metas=metas))
    found = find_candidates(pages, options, Blocklists(), Stats())
    return {(each.page[8:-5], each.text) for each in found}


def measured(evidence: str, name: str = "captions") -> Rates:
    """Return the rates of one way to tell on a set."""
    rows = captions(name)
    whole = Counter(row["language"] for row in rows)
    recall = {}
    for language in whole:
        found = kept(rows, language, evidence)
        good = sum(
            (row["page"], row["text"]) in found for row in rows if row["language"] == language
        )
        recall[language] = good / whole[language]
    english = kept(rows, "en", evidence)
    is_kept = [(row, (row["page"], row["text"]) in english) for row in rows]
    short = [k for row, k in is_kept if row["language"] == "en" and len(row["text"]) <= SHORT]
    false = [row["text"] for row, k in is_kept if row["language"] != "en" and k]
    others = len(rows) - whole["en"]
    return Rates(recall, sum(short) / len(short), len(false) / others, false)


def main(arguments: Sequence[str]) -> None:
    parser(__doc__, arguments).parse_args(arguments)
    for name, evidence in product(SETS, ("caption", "page")):
        rates = measured(evidence, name)
        others = [share for language, share in rates.recall.items() if language != "en"]
        print(
            f"{name}, {evidence}: English {rates.recall['en']:.1%}, short English "
            f"{rates.short_english:.1%}, other languages {sum(others) / len(others):.1%}, "
            f"falsely English {rates.false_english:.1%}"
        )
        print("  ", " ".join(f"{name} {share:.0%}" for name, share in rates.recall.items()))
        print("   falsely English:", "; ".join(rates.false) or "none")


if __name__ == "__main__":
    main(sys.argv[1:])
