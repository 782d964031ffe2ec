"""The figures that README and the guide state: where they are kept, and the tables made of them.

`make bench` renews ``figures.json``, `make docs` the tables. A set of figures has a name, its
values, and when, where and of which commit they were measured; those from before the file existed
have the commit that stated them. ``stated`` are values of the guide's sentences, transferred by
hand; those of ``conditions`` are limits and sizes that nobody measures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PATH = Path(__file__).with_name("figures.json")

#: A figure in a text: a number before a unit of what is measured.
MEASURED = re.compile(
    r"(?<![\w.,-])(\d[\d,]*(?:\.\d+)?) (?:(?:CPU )?m?s|[kMG]i?B|(?:images|pairs|links)/s)\b"
)

#: Sets of figures by their names.
Figures = dict[str, dict[str, Any]]


class Row(NamedTuple):
    """A line of a table, with places for the values of a set."""

    name: str
    what: str
    ours: str
    peer: str = ""


#: README's table.
COMPARED = (
    Row("whole", "1,000 links to pairs, the whole pipeline",
        "{wall:.0f} s, {cpu:.0f} CPU s, {gib:.1f} GiB",
        "{peer_wall:.0f} s, {peer_cpu:.0f} CPU s, {peer_gib:.1f} GiB"),
    Row("images-256", "1,000 images fetched and resized to 256 px",
        "{cpu:.1f} CPU s, {mib:.0f} MiB", "img2dataset: {peer_cpu:.1f} CPU s, {peer_mib:.0f} MiB"),
    Row("tables-256", "the whole of 1,000 links of a table to images, no model",
        "{cpu:.1f} CPU s, {rate:.0f} images/s, {mib:.0f} MiB",
        "img2dataset: {peer_cpu:.1f} CPU s, {peer_rate:.0f} images/s, {peer_mib:.0f} MiB"),
    Row("judge", "ViT-B/32 on the CPU", "{rate:.1f} pairs/s",
        "clip-retrieval: {peer_rate:.1f} pairs/s"),
    Row("wat", "100 MB of WAT to links", "{cpu:.1f} CPU s, languages and opt-outs included",
        "cc2dataset: {peer_cpu:.1f} CPU s, links alone"),
)  # fmt: skip

#: The guide's.
ALL = (
    Row("wat", "100 MB of WAT to candidates, one core (`bench_wat`)",
        "{cpu:.1f} CPU s, {mib:.0f} MiB: languages, repair, refusals and hashes included",
        "cc2dataset: {peer_cpu:.1f} CPU s, {peer_mib:.0f} MiB, links alone, for which ours takes "
        "{links:.1f}; the libraries that ours inflates, parses and detects languages with: "
        "{floor:.1f}"),
    Row("links", "1,000,000 rows of a table cut into shards and read (`bench_links`)",
        "Parquet {parquet:,.0f}, JSON lines {jsonl:,.0f}, CSV.gz {csv_gz:,.0f} rows per CPU "
        "second, at most {mib:.0f} MiB"),
    Row("images-256", "1,000 images fetched, validated, hashed, at 256 px (`bench_images`)",
        "{cpu:.1f} CPU s, {rate:.0f} images/s, {mib:.0f} MiB",
        "img2dataset 1.47: {peer_cpu:.1f} CPU s, {peer_rate:.0f} images/s, {peer_mib:.0f} MiB; the "
        "libraries that ours fetches, decodes, shrinks, encodes and hashes with: {floor:.1f}"),
    Row("images-originals", "kept as they are",
        "{cpu:.1f} CPU s, {rate:.0f} images/s, {mib:.0f} MiB",
        "{peer_cpu:.1f} CPU s, {peer_rate:.0f} images/s, {peer_mib:.0f} MiB; the libraries that "
        "ours fetches, decodes and hashes with: {floor:.1f}"),
    Row("images-https-256", "at 256 px, over HTTPS, 512 connections",
        "{cpu:.1f} CPU s, {rate:.0f} images/s, {mib:.0f} MiB",
        "{peer_cpu:.1f} CPU s, {peer_rate:.0f} images/s, {peer_mib:.0f} MiB"),
    Row("images-https-originals", "kept as they are, over HTTPS, 512 connections",
        "{cpu:.1f} CPU s, {rate:.0f} images/s, {mib:.0f} MiB",
        "{peer_cpu:.1f} CPU s, {peer_rate:.0f} images/s, {peer_mib:.0f} MiB"),
    Row("images-asked-256", "at 256 px, each of 200 hosts asked first (`--consent strict`)",
        "{cpu:.1f} CPU s, {rate:.0f} images/s, {mib:.0f} MiB"),
    Row("tables-256", "the whole `cah run --links --no-judge`: 1,000 links to a dataset at 256 px "
        "(`bench_tables`)", "{cpu:.1f} CPU s, {rate:.0f} images/s, {mib:.0f} MiB",
        "{peer_cpu:.1f} CPU s, {peer_rate:.0f} images/s, {peer_mib:.0f} MiB"),
    Row("tables-originals", "kept as they are",
        "{cpu:.1f} CPU s, {rate:.0f} images/s, {mib:.0f} MiB",
        "{peer_cpu:.1f} CPU s, {peer_rate:.0f} images/s, {peer_mib:.0f} MiB"),
    Row("judge", "scored by ViT-B/32 on the CPU (`bench_judge`)", "{rate:.1f} pairs/s",
        "clip-retrieval: {peer_rate:.1f} pairs/s"),
    Row("beside", "what the GPU's machine does beside the model, an image: of originals, at "
        "256 px, from thumbs (`bench_beside`)", 
        "{originals:.1f}, {small:.1f} and {thumbs:.1f} CPU ms",
        "decoding alone, by libjpeg-turbo: {originals_floor:.1f}, {small_floor:.1f} and "
        "{thumbs_floor:.1f}"),
    Row("write", "images written, as a parcel and as a dataset (`bench_write`)",
        "{parcel:.0f} and {dataset:.0f} MB per CPU second; {strange:.0f} if each is hashed by its "
        "looks first", "SHA-256 and one write: {bare:.0f}"),
    Row("whole", "the whole: 1,000 links to pairs on this one machine (`bench_whole`)",
        "{wall:.0f} s, {cpu:.0f} CPU s, {gib:.1f} GiB",
        "img2dataset, clip-retrieval and a threshold: {peer_wall:.0f} s, {peer_cpu:.0f} CPU s, "
        "{peer_gib:.1f} GiB"),
    Row("score", "scored again, by `cah score` (`bench_score`)", "{rate:.1f} pairs/s",
        "judging the same images from memory: {judging:.1f} pairs/s"),
    Row("select", "`cah select` among 1,000,000 pairs, and rewriting what stays (`bench_select`)",
        "{seconds:.1f} s, {rewriting:.0f} MB per CPU second"),
    Row("browse-1000000", "`cah browse` of 1,000,000 pairs: first page, search, filter "
        "(`bench_browse`)",
        "{page:.0f}, {search:.0f} and {filter:.0f} ms, {gib:.1f} GiB beside the mapped files"),
    Row("pull-limited", "parcels of 1 GiB pulled over TLS from a node with a link of 1 Gbit/s and "
        "a round trip of 30 ms (`bench_pull`)", "{rate:.0f} MiB/s",
        "SFTP: {sftp:.0f} MiB/s; TCP alone: {tcp:.0f}"),
    Row("pull-far", "the same without a limit, both sides on the two cores", "{rate:.0f} MiB/s",
        "SFTP: {sftp:.0f} MiB/s; TCP alone: {tcp:.0f}"),
    Row("pull-near", "and without the round trip", "{rate:.0f} MiB/s",
        "SFTP: {sftp:.0f} MiB/s; TCP alone: {tcp:,.0f}"),
    Row("demo", "`cah demo`: two shards, 434 links (`bench_start`)",
        "{wall:.1f} s, {cpu:.1f} CPU s"),
    Row("start", "`cah --help`", "{wall:.2f} s"),
)  # fmt: skip


def read() -> Figures:
    """Return all sets of figures."""
    figures: Figures = json.loads(PATH.read_text(encoding="utf-8"))
    return figures


def lines(rows: tuple[Row, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a table: what, ours, the peer's, and when it was measured."""
    known = read()
    for row in rows:
        found = known[row.name]
        yield row.what, row.ours.format(**found), row.peer.format(**found), found["date"]


def unknown(text: str) -> list[str]:
    """Return the figures in a text that no set has."""
    values = [
        value
        for found in read().values()
        for each in found.values()
        for value in (each if isinstance(each, list) else [each])
        if isinstance(value, int | float)
    ]
    return [match[0] for match in MEASURED.finditer(text) if not _is_known(match[1], values)]


def _is_known(number: str, values: list[float]) -> bool:
    plain = number.replace(",", "")
    digits = len(plain.partition(".")[2])
    return plain in {f"{value:.{digits}f}" for value in values}
