"""`cah select`: choose pairs of a finished dataset by a rule."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cahlib.commands.change_dataset import dataset_folder, print_changes, removed_sentence
from cahlib.commands.console import print_result
from cahlib.core.errors import CahError, ConfigError, MissingSetting
from cahlib.core.terminal import print_note
from cahlib.core.wording import plural

if TYPE_CHECKING:
    from cahlib.dataset.maintain.apply_selection import SelectionPlan
    from cahlib.dataset.maintain.selection import GroupCount, Selection, SelectionRule, UidList
    from cahlib.dataset.query import PairQuery

#: The rules that have names, which are in a module that takes long to import.
RULES = ("laion400m", "laion5b", "datacomp-basic", "datacomp-clip30")

#: What pairs are counted by.
_HEADINGS = {"languages": "language", "domains": "registered domain", "sides": "shorter side"}

#: Languages and domains that are listed.
_GROUPS = 10


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "select",
        help="choose pairs of a dataset by a rule",
        description="Choose pairs of a finished dataset by a rule, and show how many stay. With "
        "--into, write them into\na new dataset; with --apply, remove the others from this one. "
        "Safe to interrupt and rerun.\nThe condition is SQL (DuckDB's) on the columns of a pair, "
        "which `cah guide choosing` lists.",
        example="cah select demo-dataset --where \"language = 'en'\" --top 50%",
    )
    parser.add_dataset()
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="SQL",
        help="condition that a pair must meet",
    )
    for name, what in (("--marks", "keep"), ("--not-marks", "leave out")):
        parser.add_argument(
            name, action="append", default=[], metavar="FILE",
            help=f"{what} the pairs whose uids a file lists, such as the marks of `cah browse`",
        )  # fmt: skip
    parser.add_argument(
        "--rule", default="", metavar="NAME", choices=RULES,
        help=f"rule of a published dataset: {', '.join(RULES)}",
    )  # fmt: skip
    parser.add_argument(
        "--max-per-domain", type=int, metavar="N",
        help="keep at most N pairs of each registered domain, the best by --by",
    )  # fmt: skip
    parser.add_argument(
        "--max-per", nargs=2, action="append", default=[], metavar=("COLUMN", "N"),
        help="keep at most N pairs for each value of a column, the best by --by",
    )  # fmt: skip
    parser.add_argument(
        "--top", default="", metavar="N|P%",
        help="of what is left then, keep the best N pairs or P percent",
    )  # fmt: skip
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        help="number by which pairs are the best: the largest [similarity]",
    )
    parser.add_argument(
        "--per", default="", metavar="COLUMN", help="apply --top to each value of this column"
    )
    parser.add_argument("--into", metavar="FOLDER|URL", help="write what stays into a new dataset")
    parser.add_argument(
        "--page", default="", metavar="FILE",
        help="page with pictures from both sides of the cut [DATASET-selection.html]",
    )  # fmt: skip
    parser.add_argument("--apply", action="store_true", help="remove what does not stay")
    parser.add_json()
    parser.set_defaults(act=_select, extra="query")


def _select(chosen: argparse.Namespace) -> int:
    if chosen.into is not None and chosen.apply:
        raise ConfigError("select: give --into or --apply, not both.")
    lists = chosen.marks or chosen.not_marks
    if not (chosen.where or chosen.rule or chosen.top or lists or _caps(chosen)):
        raise MissingSetting(
            "select: give a rule with --where, --rule, --top, --max-per, --marks or --not-marks."
        )
    result = (
        _applied(chosen) if chosen.apply else _copied(chosen) if chosen.into is not None else None
    )
    if result is None:
        result = _reported(chosen)
    print_result(chosen, result)
    return 0


def _reported(chosen: argparse.Namespace) -> dict[str, Any]:
    """Show what a rule chooses, and return it."""
    from cahlib.core.lock import is_locked

    _, result = _chosen(chosen, _asked(chosen))
    if "://" not in chosen.dataset and is_locked(Path(chosen.dataset)):
        print_note("Another command is writing to this dataset, so it may have other pairs soon.")
    print_note("Nothing was changed: --into FOLDER writes what stays, --apply removes the rest.")
    return result


def _applied(chosen: argparse.Namespace) -> dict[str, Any]:
    """Remove what does not stay, and return what was done."""
    from cahlib.dataset.maintain.apply_selection import (
        added_since,
        apply_plan,
        dataset_digest,
        find_plan,
        plan_selection,
    )
    from cahlib.dataset.maintain.purge import change_dataset
    from cahlib.dataset.write.shard_writer import recover_interrupted

    folder = dataset_folder(chosen.dataset)
    with change_dataset(folder):
        recover_interrupted(folder)  # what an interrupted change left cannot be read
        asked = _asked(chosen)
        plan = find_plan(folder, asked.rule)
        digest = dataset_digest(folder)
        if plan and plan.done and plan.dataset == digest:
            return _again(chosen, plan, "was applied already")
        if plan and not plan.done:
            result = _again(chosen, plan, "was interrupted, and is continued")
        else:
            selection, result = _chosen(chosen, asked)
            plan = plan_selection(selection, digest)
        pairs, shards, _ = print_changes(apply_plan(folder, plan))
        if added := added_since(folder, plan):
            print_note(
                f"{plural(added, 'shard')} came after this selection had begun; run it again to "
                "choose from all."
            )
    if not chosen.json:
        print(removed_sentence(pairs, shards))
    return result | {"pairs_removed": pairs, "shards_changed": shards}


def _copied(chosen: argparse.Namespace) -> dict[str, Any]:
    """Write what stays into a new dataset, and return what was done."""
    from cahlib.dataset.maintain.apply_selection import (
        dataset_digest,
        find_new_plan,
        plan_selection,
        reading_source,
        write_selected,
    )

    with reading_source(chosen.dataset):
        asked = _asked(chosen)
        plan = find_new_plan(chosen.dataset, chosen.into, asked.rule)
        if plan and plan.done:
            return _again(chosen, plan, f"is in {chosen.into} already")
        if plan:
            result = _again(chosen, plan, "was interrupted, and is continued")
        else:
            selection, result = _chosen(chosen, asked)
            plan = plan_selection(selection, dataset_digest(chosen.dataset))
        shards = 0
        for change in write_selected(chosen.dataset, chosen.into, plan):
            shards += 1
            print_note(f"{change.shard}: {plural(change.left, 'pair')}")
    if not chosen.json:
        print(f"Wrote {plural(plan.stay, 'pair')} in {plural(shards, 'shard')}: {chosen.into}")
    return result | {"shards_written": shards}


def _again(chosen: argparse.Namespace, plan: SelectionPlan, state: str) -> dict[str, Any]:
    """Say that a selection was begun before, and return what is known of it."""
    sentence = f"This selection {state}: {plan.stay:,} of {plural(plan.pairs, 'pair')} stay."
    if chosen.json:
        print_note(sentence)
    else:
        print(sentence)
    return _result(chosen, rule=dict(plan.rule), pairs=plan.pairs, stay=plan.stay)


def _result(chosen: argparse.Namespace, **found: Any) -> dict[str, Any]:
    """Return what is printed for scripts, which has the same keys in every case."""
    empty: dict[str, Any] = {name: [] for name in ("notes", "steps", *_HEADINGS)}
    numbers = dict.fromkeys(("pairs_removed", "shards_changed", "shards_written"), 0)
    return {"dataset": chosen.dataset, **empty, "cut": None, "page": None, **numbers, **found}


def _chosen(chosen: argparse.Namespace, asked: _Asked) -> tuple[Selection, dict[str, Any]]:
    """Choose pairs, show how many stay, and return them with what was shown."""
    from cahlib.dataset.maintain.selection import select_pairs

    selection = select_pairs(asked.pairs, asked.rule)
    groups = {
        "languages": selection.languages(),
        "domains": selection.domains(),
        "sides": selection.sides(),
    }
    if not chosen.json:
        _print(chosen.dataset, selection, asked.notes, groups)
    page = _write_page(chosen, selection, groups, asked.notes)
    return selection, _result(
        chosen,
        page=page,
        rule=asked.rule.as_dict(),
        notes=list(asked.notes),
        pairs=selection.pairs.rows,
        stay=selection.count,
        steps=[{"step": step, "left": left} for step, left in selection.steps],
        cut=selection.cut(),
        **{name: [each._asdict() for each in counts] for name, counts in groups.items()},
    )


def _write_page(
    chosen: argparse.Namespace,
    selection: Selection,
    groups: dict[str, list[GroupCount]],
    notes: Sequence[str],
) -> str | None:
    """Write the page on a selection, and return where it is; None if it cannot be there."""
    from cahlib.browse.edge import read_edge
    from cahlib.core.atomic import write_file
    from cahlib.dataset.show.selection_page import render_selection
    from cahlib.dataset.show.templates import GENERATOR

    place = chosen.dataset.rstrip("/")
    beside = Path(place.rpartition("/")[2] if "://" in place else Path(place).absolute())
    path = Path(chosen.page) if chosen.page else beside.with_name(f"{beside.name}-selection.html")
    try:
        if path.exists() and GENERATOR.encode() not in path.read_bytes():
            raise ConfigError(f"page: {path} is not a page of cahlib; choose another file.")
        titled = {_HEADINGS[name]: counts for name, counts in groups.items()}
        page = render_selection(
            beside.name, selection, titled, read_edge(chosen.dataset, selection), notes
        )
        write_file(path, page.encode("utf-8", "replace"))
    except (CahError, OSError) as error:
        if chosen.page:
            raise
        print_note(f"The page with pictures was not written: {error}")
        return None
    print_note(f"Pictures from both sides of the cut: {path}")
    return str(path)


class _Asked(NamedTuple):
    """The rule that the options ask for."""

    pairs: PairQuery
    rule: SelectionRule
    notes: Sequence[str]  #: what of a ready rule is not applied


def _asked(chosen: argparse.Namespace) -> _Asked:
    from dataclasses import replace

    from cahlib.dataset.maintain.ready_rules import ready_rule
    from cahlib.dataset.maintain.selection import SelectionRule
    from cahlib.dataset.query import PairQuery

    pairs, rule, notes = PairQuery(chosen.dataset), SelectionRule(), list[str]()
    if chosen.rule:
        rule, notes = ready_rule(chosen.rule, pairs.columns)
    if rule.top and (chosen.top or chosen.by):
        raise ConfigError(f"rule: {chosen.rule} is a share of its own; leave out --top and --by.")
    rule = replace(
        rule,
        where=(*rule.where, *chosen.where),
        listed=(*_listed(chosen.marks, keep=True), *_listed(chosen.not_marks, keep=False)),
        caps=_caps(chosen),
        top=rule.top or chosen.top,
        by=chosen.by or rule.by,
        per=chosen.per,
    )
    return _Asked(pairs, rule, notes)


def _listed(files: Sequence[str], *, keep: bool) -> tuple[UidList, ...]:
    """Return what files of uids list, all of them together; raise ConfigError for a bad file."""
    from cahlib.core.lists import MD5, read_entries
    from cahlib.dataset.maintain.selection import UidList

    name = "marks" if keep else "not-marks"
    found = frozenset(uid.lower() for file in files for uid in read_entries(file, name, MD5))
    if files and not found:
        raise ConfigError(f"{name}: {' and '.join(files)} lists no pair; mark some first.")
    return (UidList(found, keep),) if files else ()


def _caps(chosen: argparse.Namespace) -> tuple[tuple[str, int], ...]:
    given = [*chosen.max_per]
    if chosen.max_per_domain is not None:
        given.append(("domain", str(chosen.max_per_domain)))
    for name, most in given:
        if not most.isdecimal():
            raise ConfigError(f"max-per: {most!r} is not a number of pairs for each {name}.")
    return tuple((name, int(most)) for name, most in given)


def _print(
    dataset: str,
    selection: Selection,
    notes: Iterable[str],
    groups: dict[str, list[GroupCount]],
) -> None:
    pairs, stay = selection.pairs.rows, selection.count
    print(f"{dataset}: {plural(pairs, 'pair')}")
    for step, left in selection.steps:
        print(f"  {left:>12,}  {step}")
    share = f" ({100 * stay / pairs:.1f} %)" if pairs else ""
    cut = selection.cut()
    least = f", with a {selection.rule.by} of {cut:.4g} and more" if cut is not None else ""
    print(f"{stay:,} {'pair stays' if stay == 1 else 'pairs stay'}{share}{least}.")
    for note in notes:
        print_note(note)
    for name, counts in groups.items():
        if counts:
            print(f"{_HEADINGS[name]}: stay, of")
            for each in counts[:_GROUPS]:
                name = "".join(c if c.isprintable() else "\ufffd" for c in each.name)
                print(f"  {each.stay:>12,}  {each.pairs:>12,}  {name or '(none)'}")
            if len(counts) > _GROUPS:
                print(f"  … and {len(counts) - _GROUPS:,} more")
