"""`cah tracker`: serve a tracker, fill it, and read it off."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cahlib.config import Crawl
from cahlib.errors import ConfigError, is_full, no_space

if TYPE_CHECKING:
    from fastapi import FastAPI

    from cahlib.tracker.database import Database
    from cahlib.tracker.service import Settings


def add(commands: Any) -> None:
    """Add the command and its own commands."""
    tracker = commands.add_parser("tracker", help="let many people work through one crawl together")
    own = tracker.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(own.add_parser("serve", help="run the tracker"))
    intake = own.add_parser("add", help="add a crawl's WAT files to the list")
    intake.add_argument(
        "--crawl",
        required=True,
        help="a crawl's name (CC-MAIN-2024-10), or WAT files as in cah run",
    )
    intake.add_argument("--wats", type=int, default=0, help="how many WAT files; 0 = all [0]")
    intake.add_argument("--seed", type=int, default=0, help="draw them at random; 0 = in order [0]")
    intake.add_argument("--base-url", default=Crawl().base_url, help="where crawls are listed")
    intake.set_defaults(act=_intake)
    stats = own.add_parser("stats", help="print how far the crawl is")
    stats.set_defaults(act=_stats)
    checks = own.add_parser("checks", help="compare finished shards with their spot checks")
    checks.set_defaults(act=_checks)
    export = own.add_parser("export", help="write the leaderboard or every shard's state")
    export.add_argument("what", choices=("leaderboard", "shards"))
    export.add_argument("--form", choices=("csv", "json"), default="csv", help="[csv]")
    export.add_argument("--output", default="-", help="a file; - for the terminal [-]")
    export.set_defaults(act=_export)
    retry = own.add_parser("retry", help="put shards that were set aside back on the list")
    retry.add_argument("shards", nargs="*", type=int, help="their numbers; none = all")
    retry.add_argument(
        "--old-parcels",
        action="store_true",
        help="also those whose parcels of old clients no GPU worker has taken",
    )
    retry.set_defaults(act=_retry)
    expel = own.add_parser("expel", help="send workers away; what they hold is free again")
    expel.add_argument(
        "names",
        nargs="+",
        help="workers as `cah tracker export shards` shows them, or nicknames",
    )
    expel.add_argument(
        "--undo", action="store_true", help="put what they completed back on the list, uncounted"
    )
    expel.set_defaults(act=_expel)
    keep = own.add_parser("backup", help="write all of a tracker into a file, while it runs")
    keep.add_argument("file")
    keep.set_defaults(act=_backup)
    restore = own.add_parser("restore", help="fill an empty database, of any kind, from a backup")
    restore.add_argument("file")
    restore.set_defaults(act=_restore)
    for parser in (intake, stats, checks, export, retry, expel, keep, restore):
        _add_database(parser)
    create = own.add_parser("filter", help="make an empty Bloom filter for workers to share")
    create.add_argument("file", help="NAME.bloom, in the folder that serve is given by --filters")
    create.add_argument("--items", type=int, default=100_000_000, help="its size [100000000]")
    create.add_argument("--error", type=float, default=0.001, help="how often it errs [0.001]")
    create.set_defaults(act=_filter)


def _add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database",
        default=os.environ.get("CAH_TRACKER_DATABASE", "sqlite:///tracker.sqlite"),
        metavar="URL",
        help="sqlite:///FILE, or postgresql+psycopg://USER:PASSWORD@HOST/NAME for a crowd; also "
        "CAH_TRACKER_DATABASE, which keeps the password out of the list of processes "
        "[sqlite:///tracker.sqlite]",
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run the tracker. The administrator's calls exist only if CAH_TRACKER_SECRET is set."
    )
    _add_database(parser)
    option = parser.add_argument
    option("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 = all [127.0.0.1]")
    option("--port", type=int, default=8000, help="[8000]")
    option("--processes", type=int, default=1, help="server processes; more need PostgreSQL [1]")
    option(
        "--behind-proxy", default="", metavar="ADDRESS", help="trust this proxy's X-Forwarded-For"
    )
    option("--title", default="Tracker", help="the community's name, on its pages [Tracker]")
    option("--upload", default="", metavar="URL", help="where CPU workers bring parcels (s3://…)")
    option("--old-upload", default="", metavar="TEXT", help="the same for old clients (rsync …)")
    option("--no-legacy", action="store_true", help="serve no clients of Crawling@Home (2021)")
    option("--filters", default="", metavar="FOLDER", help="serve the Bloom filters in it")
    option("--lease-minutes", type=float, default=15, help="patience with silent workers [15]")
    option("--failures", type=int, default=3, help="workers that must fail with a shard [3]")
    option("--most-pairs", type=int, default=20_000, help="that a shard can bring [20000]")
    option(
        "--verify-share", type=float, default=0, metavar="SHARE",
        help="of the finished shards, that somebody else does again to compare, 0 to 1 [0]",
    )  # fmt: skip
    option("--rate", type=float, default=50, help="requests a second of one address; 0 = any [50]")
    parser.set_defaults(act=_serve)


def _serve(chosen: argparse.Namespace) -> int:
    import uvicorn

    from cahlib.tracker import guard
    from cahlib.tracker.app import create

    settings = _settings(vars(chosen))
    if chosen.processes > 1 and settings.database.startswith("sqlite"):
        raise ConfigError("processes: several server processes need PostgreSQL.")
    with _database(settings.database):
        pass  # it is there, and has the tables that are needed
    options: dict[str, Any] = {
        "access_log": False, "log_level": "info",
        # Without being told so, nobody's word is taken for where he comes from.
        "proxy_headers": bool(chosen.behind_proxy), "forwarded_allow_ips": chosen.behind_proxy,
        "server_header": False, "timeout_keep_alive": 60, "timeout_graceful_shutdown": 10,
        **guard.options(),
    }  # fmt: skip
    with _listening(chosen.host, chosen.port) as listener:
        options["fd"] = listener.fileno()
        if chosen.processes == 1:
            uvicorn.run(create(settings), **options)
            return 0
        given = {k: v for k, v in vars(chosen).items() if isinstance(v, int | float | str)}
        os.environ[_HANDED_ON] = json.dumps(given)
        here = "cahlib.commands.tracker:application"
        uvicorn.run(here, factory=True, workers=chosen.processes, **options)
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """The port; raises ConfigError if it cannot be had.

    What uvicorn makes for several processes lacks TCP_NODELAY: an answer's second packet then
    waits until the first one is acknowledged, 44 ms where a request took 1 ms.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port: {port} is not a port; give 1 to 65535.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be served at: {error.strerror or error}."
        ) from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


#: How the settings reach further server processes, which start from nothing.
_HANDED_ON = "CAH_TRACKER_SERVE"


def application() -> FastAPI:
    """The application of one of several server processes."""
    from cahlib.tracker.app import create

    return create(_settings(json.loads(os.environ[_HANDED_ON])))


def _settings(chosen: dict[str, Any]) -> Settings:
    from cahlib.tracker.limits import Limits
    from cahlib.tracker.rules import MOST_PAIRS, Rules
    from cahlib.tracker.service import Settings

    least = {"lease_minutes": 0.01, "failures": 1, "most_pairs": 1, "rate": 0, "processes": 1}
    for name, bound in least.items():
        if chosen[name] < bound:
            raise ConfigError(f"{name}: {chosen[name]:g} is not allowed; give at least {bound:g}.")
    if chosen["most_pairs"] > MOST_PAIRS:
        raise ConfigError(f"most_pairs: give at most {MOST_PAIRS:,}.")
    if not 0 <= chosen["verify_share"] <= 1:
        raise ConfigError("verify_share: give a share from 0 to 1, such as 0.02.")
    rate = chosen["rate"]
    filters = chosen["filters"]
    if filters and not Path(filters).is_dir():
        raise ConfigError(f"filters: there is no folder {filters}.")
    return Settings(
        database=chosen["database"],
        rules=Rules(
            lease=chosen["lease_minutes"] * 60,
            failures=chosen["failures"],
            most_pairs=chosen["most_pairs"],
            verify=chosen["verify_share"],
            upload=chosen["upload"],
            old_upload=chosen["old_upload"],
        ),
        limits=Limits(address=rate, worker=rate / 5, newcomers=rate / 100, streams=math.ceil(rate)),
        title=chosen["title"],
        legacy=not chosen["no_legacy"],
        filters=filters,
        admin=os.environ.get("CAH_TRACKER_SECRET", ""),
    )


def _intake(chosen: argparse.Namespace) -> int:
    from cahlib.crawl.shards import list_shards

    if chosen.wats < 0:
        raise ConfigError(f"wats: {chosen.wats} is not allowed; give a number of at least 0.")
    crawl = Crawl(
        crawl=chosen.crawl, shards=2 * chosen.wats, seed=chosen.seed, base_url=chosen.base_url
    )
    with _database(chosen.database, create=True) as database:
        from cahlib.tracker import intake

        added = intake.add(database, list_shards(crawl))
    print(f"Added {added:,} WAT files: {2 * added:,} shards.")
    return 0


def _stats(chosen: argparse.Namespace) -> int:
    with _database(chosen.database) as database:
        from cahlib.tracker import board

        counts = board.counts(database)
        people = board.leaders(database, most=10)
    print(f"{counts.done:,} of {counts.total:,} shards are done ({counts.share:.2%}),")
    print(f"{counts.pairs:,} pairs so far.")
    for name in ("todo", "leased", "scraped", "judging", "failed"):
        print(f"  {name:<8} {getattr(counts, name):>12,}")
    for one in people:
        print(f"  {one['pairs']:>12,} pairs  {one['done']:>8,} shards  {one['nickname']}")
    return 0


def _checks(chosen: argparse.Namespace) -> int:
    with _database(chosen.database) as database:
        from cahlib.tracker import checks

        found = checks.results(database)
    print(f"{len(found):,} shards were done again by somebody else, those that agree least first:")
    for each in found:
        print(
            f"  {each.share:>6.1%} of {each.claimed:>6,} pairs  shard {each.number}  "
            f"{each.nickname}, checked by {each.checker}"
        )
    return 0


def _export(chosen: argparse.Namespace) -> int:
    with _database(chosen.database) as database, _output(chosen.output) as out:
        from cahlib.tracker import board

        rows: Iterable[dict[str, Any]]
        rows = board.export(database) if chosen.what == "shards" else board.everyone(database)
        (_write_csv if chosen.form == "csv" else _write_json)(rows, out)
    return 0


def _retry(chosen: argparse.Namespace) -> int:
    with _database(chosen.database) as database:
        from cahlib.tracker import intake

        again = intake.retry(database, chosen.shards or None, old_parcels=chosen.old_parcels)
    print(f"{again:,} shards are to do again.")
    return 0


def _expel(chosen: argparse.Namespace) -> int:
    with _database(chosen.database) as database:
        from cahlib.tracker import board, intake, people
        from cahlib.tracker.crowd import Crowd
        from cahlib.tracker.rules import Rules

        numbers = [id for name in chosen.names for id in board.named(database, name)]
        for name in chosen.names:
            people.ban(database, name)
        crowd, again = Crowd(database, Rules()), 0
        for number in numbers:
            crowd.expel(number)
            again += intake.undo(database, number) if chosen.undo else 0
    print(f"{len(numbers):,} workers are sent away; {again:,} shards are to do again.")
    return 0


def _backup(chosen: argparse.Namespace) -> int:
    with _database(chosen.database) as database:
        from cahlib.tracker import backup

        count = backup.backup(database, Path(chosen.file))
    print(f"{count:,} rows are in {chosen.file}.")
    return 0


def _restore(chosen: argparse.Namespace) -> int:
    from cahlib.tracker import backup
    from cahlib.tracker.database import Database

    database = Database(chosen.database)
    try:
        count = backup.restore(database, Path(chosen.file))
    finally:
        database.close()
    print(f"{count:,} rows are restored.")
    return 0


def _filter(chosen: argparse.Namespace) -> int:
    from cahlib.tracker import bloom

    if chosen.items < 1 or not 0 < chosen.error < 1:
        raise ConfigError("filter: give at least 1 item, and an error between 0 and 1.")
    bloom.create(Path(chosen.file), items=chosen.items, error=chosen.error)
    return 0


@contextmanager
def _database(url: str, *, create: bool = False) -> Iterator[Database]:
    """A tracker's database, with the tables that this version needs; one must be there already."""
    from cahlib.tracker.database import Database
    from cahlib.tracker.migrate import migrate

    database = Database(url)
    try:
        migrate(database, create=create)
        yield database
    finally:
        database.close()


@contextmanager
def _output(name: str) -> Iterator[TextIO]:
    if name == "-":
        yield sys.stdout
        return
    try:
        with open(name, "w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        if is_full(error):
            raise no_space(name) from error
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
