"""`cah blocklist`: lists of domains that never answered, made from past runs."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cahlib.commands.console import print_result
from cahlib.core.errors import ConfigError, disk_full_error, is_disk_full
from cahlib.core.terminal import print_note


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "blocklist",
        help="make or show a list of domains that never answered in past runs",
        example="cah blocklist build demo-dataset",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = actions.add_parser(
        "build",
        help="make a list from the shards of datasets",
        example="cah blocklist build demo-dataset --output failed-domains.txt",
    )
    build.add_dataset("folders or URLs of datasets", dest="datasets", nargs="+")
    build.add_argument(
        "--output", default="failed-domains.txt", metavar="FILE", help="list to write"
    )
    build.add_argument(
        "--least", type=int, default=1, metavar="N", help="number of shards that must agree [1]"
    )
    build.add_json()
    build.set_defaults(act=_build)
    show = actions.add_parser(
        "show",
        help="show the domains of a list",
        example="cah blocklist show failed-domains.txt",
    )
    show.add_argument("list", metavar="FILE", help="list of domains")
    show.add_json()
    show.set_defaults(act=_show)


def _build(chosen: argparse.Namespace) -> int:
    from cahlib.dataset.manifest import no_dataset_error, read_manifests

    silent, answered, shards = Counter[str](), set[str](), 0
    for dataset in chosen.datasets:
        before = shards
        for manifest in read_manifests(dataset):
            shards += 1
            silent.update(manifest.silent)
            answered.update(manifest.domains)
        if shards == before:
            raise no_dataset_error(dataset)
    listed = sorted(
        domain
        for domain, number in silent.items()
        if number >= chosen.least and not _among(domain, answered)
    )
    day = time.strftime("%Y-%m-%d", time.gmtime())
    text = f"# domains that never answered, in {shards} shards; {day}\n"
    try:
        Path(chosen.output).write_text(text + "".join(f"{d}\n" for d in listed), encoding="utf-8")
    except OSError as error:
        if is_disk_full(error):
            raise disk_full_error(chosen.output) from error
        raise ConfigError(f"{chosen.output} cannot be written ({error.strerror}).") from error
    result = {"list": chosen.output, "shards": shards, "domains": len(listed)}
    print_result(chosen, result, [f"{len(listed):,} domains: {chosen.output}"])
    print_note(f"`cah run --blocked-domains {chosen.output}` skips them.")
    return 0


def _among(domain: str, hosts: set[str]) -> bool:
    """Return whether one of the hosts belongs to a domain."""
    return any(host == domain or host.endswith(f".{domain}") for host in hosts)


def _show(chosen: argparse.Namespace) -> int:
    from cahlib.core.lists import DOMAIN, read_entries

    found = sorted(set(read_entries(chosen.list, "list", DOMAIN)))
    print_result(chosen, {"list": chosen.list, "domains": found}, found)
    print_note(f"# {len(found):,} domains")
    return 0
