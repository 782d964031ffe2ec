"""`cah tracker serve`: the server of a tracker, as one process or several."""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahlib.commands.parser import Parser
from cahlib.core.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from cahlib.ledger.database import Database
    from cahlib.tracker.service import TrackerSettings


def add_options(parser: Parser) -> None:
    """Add what a tracker is told when it is served."""
    parser.description = (
        "Run the tracker. The admin API is enabled only if CAH_TRACKER_SECRET is set."
    )
    option = parser.add_argument
    option("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 = all [127.0.0.1]")
    option("--port", metavar="N", type=int, default=8000, help="port to listen on [8000]")
    option(
        "--processes", metavar="N", type=int, default=1,
        help="server processes; more than one needs PostgreSQL [1]",
    )  # fmt: skip
    option(
        "--behind-proxy", default="", metavar="ADDRESS", help="trust this proxy's X-Forwarded-For"
    )
    option("--title", default="Tracker", help="the community's name, for the pages [Tracker]")
    option("--upload", default="", metavar="URL", help="where CPU workers upload parcels (s3://…)")
    option("--old-upload", default="", metavar="TEXT", help="the same for old clients (rsync …)")
    option("--no-legacy", action="store_true", help="do not serve clients of Crawling@Home (2021)")
    option("--filters", default="", metavar="FOLDER", help="serve the Bloom filters in this folder")
    option(
        "--lease-minutes", metavar="N", type=float, default=15,
        help="minutes without a word from a worker after which its shard is free again [15]",
    )  # fmt: skip
    option(
        "--failures", metavar="N", type=int, default=3,
        help="workers that must fail with a shard before it is set aside [3]",
    )  # fmt: skip
    option(
        "--most-pairs", metavar="N", type=int, default=20_000,
        help="most pairs that a shard can have [20000]",
    )  # fmt: skip
    option(
        "--verify-share", type=float, default=0, metavar="SHARE",
        help="share of finished shards, 0 to 1, that someone else repeats to compare [0]",
    )  # fmt: skip
    option(
        "--rate", metavar="N", type=float, default=50,
        help="requests per second from one address; 0 = unlimited [50]",
    )  # fmt: skip


def serve(chosen: argparse.Namespace) -> int:
    """Serve a tracker until the process is ended."""
    import uvicorn

    from cahlib.tracker import connections
    from cahlib.tracker.app import create_app

    settings = _settings(vars(chosen))
    if chosen.processes > 1 and settings.database.startswith("sqlite"):
        raise ConfigError("processes: several server processes need PostgreSQL.")
    with open_tracker_database(settings.database):
        pass  # it is there, and has the tables that are needed
    options: dict[str, Any] = {
        "access_log": False, "log_level": "info",
        # Without being told so, nobody's word is taken for where he comes from.
        "proxy_headers": bool(chosen.behind_proxy), "forwarded_allow_ips": chosen.behind_proxy,
        "server_header": False, "timeout_keep_alive": 60, "timeout_graceful_shutdown": 10,
        **({"use_colors": False} if os.environ.get("NO_COLOR") else {}),
        **connections.uvicorn_options(),
    }  # fmt: skip
    with _listening(chosen.host, chosen.port) as listener:
        options["fd"] = listener.fileno()
        if chosen.processes == 1:
            try:
                uvicorn.run(create_app(settings), **options)
            except SystemExit as ended:  # its 3 is a failed start: ours says something else
                return 1 if ended.code else 0
            return 0
        given = {k: v for k, v in vars(chosen).items() if isinstance(v, int | float | str)}
        os.environ[_HANDED_ON] = json.dumps(given)
        here = "cahlib.commands.serve:application"
        uvicorn.run(here, factory=True, workers=chosen.processes, **options)
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket bound to the port; raise ConfigError if it is not available.

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
            f"cannot listen on {host}:{port} ({error.strerror or error}); give another --port."
        ) from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


#: How the settings reach further server processes, which start from nothing.
_HANDED_ON = "CAH_TRACKER_SERVE"


def application() -> FastAPI:
    """Return the application of one of several server processes."""
    from cahlib.tracker.app import create_app

    return create_app(_settings(json.loads(os.environ[_HANDED_ON])))


def _settings(chosen: dict[str, Any]) -> TrackerSettings:
    from cahlib.tracker.models import MAX_PAIRS, TrackerRules
    from cahlib.tracker.request_limits import RequestLimits
    from cahlib.tracker.service import TrackerSettings

    least = {"lease_minutes": 0.01, "failures": 1, "most_pairs": 1, "rate": 0, "processes": 1}
    for name, bound in least.items():
        if chosen[name] < bound:
            raise ConfigError(f"{name}: {chosen[name]:g} is not allowed; give at least {bound:g}.")
    if chosen["most_pairs"] > MAX_PAIRS:
        raise ConfigError(f"most_pairs: give at most {MAX_PAIRS:,}.")
    if not 0 <= chosen["verify_share"] <= 1:
        raise ConfigError("verify_share: give a share from 0 to 1, such as 0.02.")
    rate = chosen["rate"]
    filters = chosen["filters"]
    if filters and not Path(filters).is_dir():
        raise ConfigError(f"filters: there is no folder {filters}.")
    return TrackerSettings(
        database=chosen["database"],
        rules=TrackerRules(
            lease_seconds=chosen["lease_minutes"] * 60,
            max_failures=chosen["failures"],
            max_pairs=chosen["most_pairs"],
            verify_share=chosen["verify_share"],
            upload_url=chosen["upload"],
            legacy_upload=chosen["old_upload"],
        ),
        limits=RequestLimits(
            address=rate, worker=rate / 5, newcomers=rate / 100, streams=math.ceil(rate)
        ),
        title=chosen["title"],
        legacy=not chosen["no_legacy"],
        filters=filters,
        admin=os.environ.get("CAH_TRACKER_SECRET", ""),
    )


@contextmanager
def open_tracker_database(url: str, *, create: bool = False) -> Iterator[Database]:
    """Provide a tracker's database, migrated to this version; it must exist already."""
    from cahlib.ledger.database import Database
    from cahlib.tracker.migrate import migrate

    database = Database(url)
    try:
        migrate(database, create=create)
        yield database
    finally:
        database.close()
