"""`cah tracker`: serve a tracker, fill it, and read it off."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cahlib.commands import serve
from cahlib.commands.console import print_result
from cahlib.commands.parser import Parser
from cahlib.commands.serve import open_tracker_database
from cahlib.core.config import Crawl
from cahlib.core.crawl_settings import NO_TEXT
from cahlib.core.errors import ConfigError, disk_full_error, is_disk_full
from cahlib.core.table_rows import is_shareable

#: Commands without a result of a few fields: a server, a table with --form json, a file alone.
_TEXT = {"serve", "export", "filter"}


def add(commands: Any) -> None:
    """Add the command and its own commands."""
    tracker = commands.add_parser(
        "tracker",
        help="let many people work through one crawl together",
        example="cah tracker serve",
    )
    own = tracker.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, help: str, act: Callable[[argparse.Namespace], int], example: str = ""
    ) -> Parser:
        parser: Parser = own.add_parser(
            name, help=help, example=f"cah tracker {name} {example}".strip()
        )
        parser.set_defaults(act=act)
        if name not in _TEXT:
            parser.add_json()
        if name != "filter":
            _add_database(parser)
        return parser

    serve.add_options(
        command("serve", "run the tracker", serve.serve, "--upload s3://bucket/parcels")
    )
    adding = command(
        "add", "add a crawl, or tables of links, to the list", _add, "--crawl CC-MAIN-2024-10"
    )
    adding.add_argument(
        "--crawl", default="", help="a crawl's name (CC-MAIN-2024-10), or WAT files as for cah run"
    )
    adding.add_argument(
        "--links", metavar="PATTERN", nargs="+", default=[],
        help="tables of links instead, by URLs that every worker can read",
    )  # fmt: skip
    adding.add_argument("--url-column", metavar="NAME", default="", help="as for cah run")
    adding.add_argument("--text-column", metavar="NAME", default="", help="as for cah run")
    adding.add_argument("--extra-columns", metavar="NAMES", default="", help="as for cah run")
    adding.add_argument(
        "--shard-links", metavar="N", type=int, default=Crawl().shard_links,
        help=f"rows of a table in a shard [{Crawl().shard_links}]",
    )  # fmt: skip
    adding.add_argument(
        "--wats", metavar="N", type=int, default=0, help="how many WAT files; 0 = all [0]"
    )
    adding.add_argument(
        "--seed", metavar="N", type=int, default=0,
        help="draw them at random with this seed; 0 = in order [0]",
    )  # fmt: skip
    adding.add_argument(
        "--base-url", metavar="URL", default=Crawl().base_url, help="base URL of the crawls"
    )
    command("stats", "show how far the crawl is", _stats)
    command("checks", "compare finished shards with their spot checks", _checks)
    export = command(
        "export", "write the leaderboard or every shard's state", _export, "leaderboard"
    )
    export.add_argument("what", choices=("leaderboard", "shards"))
    export.add_argument("--form", choices=("csv", "json"), default="csv", help="format [csv]")
    export.add_argument(
        "--output", metavar="FILE", default="-", help="file to write; - = stdout [-]"
    )
    retry = command("retry", "put shards that were set aside back on the list", _retry, "17 42")
    retry.add_argument("shards", metavar="SHARD", nargs="*", type=int, help="number; none = all")
    retry.add_argument(
        "--old-parcels",
        action="store_true",
        help="also those whose parcels from old clients no GPU worker has taken",
    )
    expel = command("expel", "ban workers, and free the shards they hold", _expel, "ada")
    expel.add_argument(
        "names",
        metavar="NAME",
        nargs="+",
        help="worker as `cah tracker export shards` shows it, or nickname",
    )
    expel.add_argument(
        "--undo", action="store_true", help="put the shards they completed back on the list"
    )
    keep = command("backup", "write a running tracker to a file", _backup, "tracker.backup")
    keep.add_argument("file", metavar="FILE")
    restore = command(
        "restore", "fill an empty database, of any kind, from a backup", _restore, "tracker.backup"
    )
    restore.add_argument("file", metavar="FILE")
    create = command("filter", "create an empty Bloom filter to share", _filter, "pairs.bloom")
    create.add_argument(
        "file", metavar="FILE", help="NAME.bloom, in the folder given to serve by --filters"
    )
    create.add_argument(
        "--items", metavar="N", type=int, default=100_000_000, help="capacity [100000000]"
    )
    create.add_argument(
        "--error", metavar="SHARE", type=float, default=0.001, help="false positives [0.001]"
    )


def _add_database(parser: Parser) -> None:
    parser.add_argument(
        "--database",
        default=os.environ.get("CAH_TRACKER_DATABASE", "sqlite:///tracker.sqlite"),
        metavar="URL",
        help="sqlite:///FILE, or postgresql+psycopg://USER:PASSWORD@HOST/NAME for a large "
        "community; set CAH_TRACKER_DATABASE instead to hide the password from other users "
        "[sqlite:///tracker.sqlite]",
    )


def _add(chosen: argparse.Namespace) -> int:
    from cahlib.crawl.shards import list_shards

    if chosen.wats < 0:
        raise ConfigError(f"wats: {chosen.wats} is not allowed; give a number of at least 0.")
    crawl = Crawl(
        crawl=chosen.crawl,
        links=tuple(chosen.links),
        url_column=chosen.url_column,
        text_column=chosen.text_column,
        extra_columns=tuple(filter(None, chosen.extra_columns.split(","))),
        shard_links=chosen.shard_links,
        shards=2 * chosen.wats,
        seed=chosen.seed,
        base_url=chosen.base_url,
    )
    if chosen.text_column == NO_TEXT:
        raise ConfigError(
            "text_column: a tracker's pairs are scored by their captions; name their column."
        )
    if local := next((each for each in crawl.links if not is_shareable(each)), None):
        raise ConfigError(
            f"links: other machines cannot read {local}; give a URL (https://, hf://, s3://, gs://)."
        )
    with open_tracker_database(chosen.database, create=True) as database:
        from cahlib.tracker import admin

        taken: Collection[str] = ()
        if crawl.links:  # their tables need pyarrow, and so do these names
            from cahlib.dataset.write.columns import TAKEN as taken
        added = admin.add_wats(database, list_shards(crawl, taken=taken))
    what = f"{added:,} shards" if crawl.links else f"{added:,} WAT files: {2 * added:,} shards"
    print_result(chosen, {"shards": added if crawl.links else 2 * added}, [f"Added {what}."])
    return 0


#: What shards may be that are not done.
_STATES = "todo", "leased", "scraped", "judging", "failed"


def _stats(chosen: argparse.Namespace) -> int:
    with open_tracker_database(chosen.database) as database:
        from cahlib.tracker import statistics

        counts = statistics.crawl_counts(database)
        people = statistics.list_leaders(database, most=10)
    states = {name: getattr(counts, name) for name in _STATES}
    lines = [
        f"{counts.done:,} of {counts.total:,} shards are done ({counts.share:.2%}),",
        f"{counts.pairs:,} pairs so far.",
        *(f"  {name:<8} {number:>12,}" for name, number in states.items()),
        *(
            f"  {one['pairs']:>12,} pairs  {one['done']:>8,} shards  {one['nickname']}"
            for one in people
        ),
    ]
    result = {"shards": counts.total, "done": counts.done, "share": counts.share, **states}
    print_result(chosen, result | {"pairs": counts.pairs, "leaders": people}, lines)
    return 0


def _checks(chosen: argparse.Namespace) -> int:
    with open_tracker_database(chosen.database) as database:
        from cahlib.tracker import spot_checks

        found = spot_checks.finished_checks(database)
    lines = [
        f"{len(found):,} shards were done again by somebody else, those that agree least first:",
        *(
            f"  {each.share:>6.1%} of {each.claimed:>6,} pairs  shard {each.number}  "
            f"{each.nickname}, checked by {each.checker}"
            for each in found
        ),
    ]
    checks = [
        {"shard": each.number, "nickname": each.nickname, "checker": each.checker}
        | {"claimed": each.claimed, "agreed": each.agreed}
        for each in found
    ]
    print_result(chosen, {"checks": checks}, lines)
    return 0


def _export(chosen: argparse.Namespace) -> int:
    with open_tracker_database(chosen.database) as database, _output(chosen.output) as out:
        from cahlib.tracker import statistics

        rows: Iterable[dict[str, Any]]
        rows = (
            statistics.export_shards(database)
            if chosen.what == "shards"
            else statistics.full_leaderboard(database)
        )
        (_write_csv if chosen.form == "csv" else _write_json)(rows, out)
    return 0


def _retry(chosen: argparse.Namespace) -> int:
    with open_tracker_database(chosen.database) as database:
        from cahlib.tracker import admin

        again = admin.retry_shards(database, chosen.shards or None, old_parcels=chosen.old_parcels)
    print_result(chosen, {"shards": again}, [f"{again:,} shards will be done again."])
    return 0


def _expel(chosen: argparse.Namespace) -> int:
    with open_tracker_database(chosen.database) as database:
        from cahlib.tracker import admin, nicknames, statistics
        from cahlib.tracker.leases import LeaseStore
        from cahlib.tracker.models import TrackerRules

        numbers = [id for name in chosen.names for id in statistics.find_worker_ids(database, name)]
        for name in chosen.names:
            nicknames.ban(database, name)
        lease_store, again = LeaseStore(database, TrackerRules()), 0
        for number in numbers:
            lease_store.expel(number)
            again += admin.undo_worker(database, number) if chosen.undo else 0
    done = f"{len(numbers):,} workers were expelled; {again:,} shards will be done again."
    print_result(chosen, {"workers": len(numbers), "shards": again}, [done])
    return 0


def _backup(chosen: argparse.Namespace) -> int:
    with open_tracker_database(chosen.database) as database:
        from cahlib.tracker import backup

        count = backup.backup(database, Path(chosen.file))
    result = {"file": chosen.file, "rows": count}
    print_result(chosen, result, [f"{count:,} rows were written to {chosen.file}."])
    return 0


def _restore(chosen: argparse.Namespace) -> int:
    from cahlib.ledger.database import Database
    from cahlib.tracker import backup

    database = Database(chosen.database)
    try:
        count = backup.restore(database, Path(chosen.file))
    finally:
        database.close()
    result = {"file": chosen.file, "rows": count}
    print_result(chosen, result, [f"{count:,} rows were restored."])
    return 0


def _filter(chosen: argparse.Namespace) -> int:
    from cahlib.tracker.legacy import bloom

    if chosen.items < 1 or not 0 < chosen.error < 1:
        raise ConfigError("filter: give at least 1 item, and an error between 0 and 1.")
    bloom.create_filter(Path(chosen.file), items=chosen.items, error=chosen.error)
    return 0


@contextmanager
def _output(name: str) -> Iterator[TextIO]:
    if name == "-":
        yield sys.stdout
        return
    try:
        with open(name, "w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        if is_disk_full(error):
            raise disk_full_error(name) from error
        raise ConfigError(f"output: {name} cannot be written ({error.strerror}).") from error


def _write_csv(rows: Iterable[dict[str, Any]], out: TextIO) -> None:
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(out, list(row))
            writer.writeheader()
        writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    # A spreadsheet would take other people's text for a formula.
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _write_json(rows: Iterable[dict[str, Any]], out: TextIO) -> None:
    between = "["
    for row in rows:
        out.write(f"{between}\n{json.dumps(row)}")
        between = ","
    out.write("\n]\n" if between == "," else "[]\n")
