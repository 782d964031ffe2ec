"""`cah inspect`, `cah verify` and `cah repair`: what a dataset holds, and whether it is sound."""

from __future__ import annotations

import argparse
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahlib.commands.console import print_result
from cahlib.core.run_directory import RunDirectory
from cahlib.core.terminal import print_note

if TYPE_CHECKING:
    from cahlib.dataset.maintain.repair import RepairPlan

_LEDGER = str(RunDirectory().ledger)


def add(commands: Any) -> None:
    """Add the commands."""
    inspect = commands.add_parser(
        "inspect", help="show what a dataset holds", example="cah inspect demo-dataset"
    )
    inspect.add_dataset()
    inspect.add_json()
    inspect.set_defaults(act=_inspect)
    verify = commands.add_parser(
        "verify",
        help="check every file of a dataset",
        description="Check every file of a dataset against its checksum, every row against the "
        "others,\nand every committed shard. Exits with 1 if there are problems.",
        example="cah verify demo-dataset",
    )
    verify.add_dataset()
    verify.add_json()
    verify.set_defaults(act=_verify)
    repair = commands.add_parser(
        "repair",
        help="remove a dataset's damaged shards, to be done again",
        description="Remove the shards of a dataset that are damaged and the files that belong to "
        "no shard,\nand rebuild its list. The run's own command then does those shards again. Safe "
        "to\ninterrupt and rerun.",
        example="cah repair demo-dataset --dry-run",
    )
    repair.add_dataset()
    repair.add_argument("--dry-run", action="store_true", help="show what would be done")
    repair.add_json()
    repair.set_defaults(act=_repair)


def _inspect(chosen: argparse.Namespace) -> int:
    from cahlib.dataset.show.summary import summary_json, summary_lines

    if chosen.json:
        print_result(chosen, summary_json(chosen.dataset))
    else:
        print_result(chosen, {}, summary_lines(chosen.dataset))
    return 0


def _verify(chosen: argparse.Namespace) -> int:
    from cahlib.core.lock import is_locked
    from cahlib.core.wording import plural
    from cahlib.dataset.maintain.verify import find_problems
    from cahlib.ledger.local import committed_shards

    busy = is_locked(Path(chosen.dataset))
    problems = []
    for each in find_problems(chosen.dataset, committed_shards(Path(chosen.dataset) / _LEDGER)):
        problems.append(
            {"kind": each.kind.name.lower(), "name": each.name, "problem": each.sentence}
        )
        if not chosen.json:
            print(each.sentence)
    busy = busy or is_locked(Path(chosen.dataset))
    found = {"dataset": chosen.dataset, "sound": not problems, "in_use": busy, "problems": problems}
    sound = "Every file is whole, and all rows agree."
    print_result(chosen, found, [f"{plural(len(problems), 'problem')}." if problems else sound])
    if problems and busy:
        print_note(
            "Another command is writing to this dataset, and what it changes may be listed above; "
            "verify it again when that has ended."
        )
    elif problems:
        print_note(
            f"`cah repair {shlex.quote(chosen.dataset)}` removes what is damaged; then the run's "
            "own command does it again."
        )
    return 1 if problems else 0


def _repair(chosen: argparse.Namespace) -> int:
    from cahlib.core.lock import is_locked, lock_dataset, locked_error
    from cahlib.core.wording import plural
    from cahlib.dataset.file_names import require_writable
    from cahlib.dataset.maintain.repair import plan_repair, repair
    from cahlib.dataset.storage.files import files_at
    from cahlib.ledger.local import LocalLedger, committed_shards

    local = "://" not in chosen.dataset
    place = Path(chosen.dataset) if local else chosen.dataset
    ledger = Path(chosen.dataset) / _LEDGER
    found = plan_repair(place, committed_shards(ledger))
    if chosen.dry_run:
        planned = [*found.lines()]
        print_result(chosen, _as_json(chosen, found), planned or ["There is nothing to repair."])
        if found.unreadable:
            print_note("Nothing was changed.")
        elif planned:
            print_note("Nothing was changed; run it without --dry-run to do this.")
        return 0
    if folder := files_at(place).folder:
        require_writable(folder)
        if is_locked(folder):  # be it named by a URL
            raise locked_error(folder)
    with lock_dataset(Path(place)) if local else nullcontext():
        found = plan_repair(place, committed_shards(ledger))  # a run may have gone on until now
        for line in () if chosen.json else found.lines():
            print(line)
        repair(found)
        if local and ledger.exists():
            index = LocalLedger.open_or_replace(ledger)
            for id in found.broken:
                index.remove(id)
            index.close()
    done = (
        f"Discarded {plural(len(found.broken), 'shard')}, "
        f"removed {plural(len(found.left), 'file')}."
        + (" The run's own command makes those shards again." if found.broken else "")
    )
    print_result(chosen, _as_json(chosen, found), [done])
    return 1 if found.foreign else 0


def _as_json(chosen: argparse.Namespace, found: RepairPlan) -> dict[str, Any]:
    kinds = {
        "given_up": found.broken,
        "completed": found.unfinished,
        "removed": found.left,
        "vectors_removed": found.vectors,
        "rewritten": found.again,
        "foreign": found.foreign,
        "unreadable": found.unreadable,
    }
    listed = {
        kind: [{"name": name, "problem": problem} for name, problem in each.items()]
        for kind, each in kinds.items()
    }
    return {"dataset": chosen.dataset, "applied": not chosen.dry_run, **listed}
