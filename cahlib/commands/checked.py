"""`cah verify` and `cah repair`: whether a dataset is sound, and what makes it so again."""

from __future__ import annotations

import argparse
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cahlib.dataset.maintain.repair import RepairPlan

_LEDGER = "run/ledger.sqlite"


def add(commands: Any) -> None:
    """Add the commands."""
    verify = commands.add_parser("verify", help="check every file of a dataset")
    verify.add_argument("dataset", help="folder or URL of a dataset")
    verify.set_defaults(act=_verify)
    repair = commands.add_parser(
        "repair",
        help="put the damaged shards of a dataset back to do",
        description="Give up the shards of a dataset that are not whole, remove what belongs to "
        "none, and make its list anew. The run's own command then does those shards again. It may "
        "be interrupted, and given again.",
    )
    repair.add_argument("dataset", help="folder or URL of a dataset")
    repair.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    repair.set_defaults(act=_repair)


def _verify(chosen: argparse.Namespace) -> int:
    from cahlib.dataset.maintain.verify import verify
    from cahlib.lock import is_held
    from cahlib.tracker.store import committed
    from cahlib.words import plural

    number, busy = 0, is_held(Path(chosen.dataset))
    for problem in verify(chosen.dataset, committed(Path(chosen.dataset) / _LEDGER)):
        number += 1
        print(problem)
    if not number:
        print("Every file is whole, and all rows agree.")
        return 0
    if busy or is_held(Path(chosen.dataset)):
        print(
            f"{plural(number, 'problem')}; but another command is writing to this dataset, and "
            "what it changes may be named above. Verify it again when that has ended."
        )
        return 1
    print(
        f"{plural(number, 'problem')}. cah repair {shlex.quote(chosen.dataset)} puts what is not "
        "whole back to do; then the run's own command does it again."
    )
    return 1


def _repair(chosen: argparse.Namespace) -> int:
    from cahlib.dataset.file_names import require_writable
    from cahlib.dataset.maintain.repair import plan_repair, repair
    from cahlib.dataset.storage.files import files_at
    from cahlib.lock import busy, held, is_held
    from cahlib.tracker.store import Ledger, committed
    from cahlib.words import plural

    local = "://" not in chosen.dataset
    place = Path(chosen.dataset) if local else chosen.dataset
    ledger = Path(chosen.dataset) / _LEDGER
    found = plan_repair(place, committed(ledger))
    if chosen.dry_run:
        _print(found)
        if found.unreadable:
            print("Nothing was changed.")
        elif any(found.lines()):
            print("Nothing was changed; without --dry-run it is.")
        else:
            print("There is nothing to repair.")
        return 0
    if folder := files_at(place).folder:
        require_writable(folder)
        if is_held(folder):  # be it named by a URL
            raise busy(folder)
    with held(Path(place)) if local else nullcontext():
        found = plan_repair(place, committed(ledger))  # a run may have gone on until now
        _print(found)
        repair(found)
        if local and ledger.exists():
            index = Ledger.sound(ledger)
            for id in found.broken:
                index.remove(id)
            index.close()
    print(
        f"Gave up {plural(len(found.broken), 'shard')}, removed {plural(len(found.left), 'file')}."
        + " The run's own command does those shards again." * bool(found.broken)
    )
    return 1 if found.foreign else 0


def _print(found: RepairPlan) -> None:
    for line in found.lines():
        print(line)
