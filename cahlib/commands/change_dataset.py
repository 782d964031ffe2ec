"""`cah purge` and `cah dedup`: change a dataset that is finished."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahlib.commands.console import print_result
from cahlib.core.errors import ConfigError, MissingSetting
from cahlib.core.terminal import print_note

if TYPE_CHECKING:
    from cahlib.dataset.maintain.dedup import Duplicates
    from cahlib.dataset.maintain.rewrite import ShardChange


def add(commands: Any) -> None:
    """Add the commands."""
    purge = commands.add_parser(
        "purge",
        help="remove listed images from a dataset",
        description="Remove images from a finished dataset, from all of its files. Safe to "
        "interrupt and rerun.\nLists have one entry per line, and may be compressed with gzip.",
        example="cah purge demo-dataset --urls take-downs.txt",
    )
    purge.add_dataset("folder of a dataset")
    for name, what in (
        ("hashes", "hashes (hex md5, sha1 or sha256) of images as they were served"),
        ("looks", "perceptual hashes (16 hex digits); images that look like one are removed"),
        ("urls", "image URLs"),
        ("uids", "uids of pairs"),
    ):
        purge.add_argument(
            f"--{name}", action="append", default=[], metavar="FILE", help=f"list of {what}"
        )
    purge.add_argument(
        "--distance", type=int, default=4, choices=range(9), metavar="N",
        help="for --looks: how many bits of 64 may differ, 0 to 8 [4]",
    )  # fmt: skip
    purge.add_json()
    purge.set_defaults(act=_purge)
    dedup = commands.add_parser(
        "dedup",
        help="find images that a dataset has more than once",
        description="Find images that look alike, by the perceptual hashes in the metadata, or "
        "with --semantic\nthose that mean the same, by the stored embeddings; with --against "
        "those that are like images of an\nevaluation set. With --apply, remove them, and keep one "
        "of each.",
        example="cah dedup demo-dataset --semantic 0.95",
    )
    dedup.add_dataset("folder of a dataset")
    dedup.add_argument(
        "--distance", type=int, metavar="N",
        help="how many bits of 64 may differ, 0 to 8 [4]",
    )  # fmt: skip
    dedup.add_argument(
        "--semantic", type=float, metavar="COSINE",
        help="compare by meaning: the least cosine of two embeddings, 0.5 to 1, e.g. 0.95",
    )  # fmt: skip
    dedup.add_argument(
        "--model", default="", metavar="MODEL",
        help="for --semantic: by the embeddings of this further model [the dataset's own]; a "
        "preset, MODEL/WEIGHTS or a folder",
    )  # fmt: skip
    dedup.add_argument(
        "--keep", choices=("largest", "most-similar"),
        help="what stays of images that are alike: the largest, or the most similar to its text "
        "[largest]",
    )  # fmt: skip
    dedup.add_argument(
        "--against", action="append", default=[], metavar="FOLDER|FILE",
        help="find images that are like those of an evaluation set instead: a folder, tar or "
        "Parquet file of images, a dataset, a list of perceptual hashes or, with --semantic, "
        "embeddings (.npy)",
    )  # fmt: skip
    dedup.add_argument("--apply", action="store_true", help="remove what was found")
    dedup.add_json()
    dedup.set_defaults(act=_dedup)


def _purge(chosen: argparse.Namespace) -> int:
    from cahlib.core.wording import plural, verb
    from cahlib.dataset.maintain.purge import PurgeLists, purge

    lists = PurgeLists(
        hashes=chosen.hashes, looks=chosen.looks, distance=chosen.distance, urls=chosen.urls,
        uids=chosen.uids,
    )  # fmt: skip
    if not (lists.hashes or lists.looks or lists.urls or lists.uids):
        raise MissingSetting("purge: give a list with --hashes, --looks, --urls or --uids.")
    pairs, shards, links = print_changes(purge(dataset_folder(chosen.dataset), lists))
    others = (
        f" {plural(links, 'link')} of other candidates {verb(links, 'was', 'were')} removed from "
        "the outcomes."
    )
    result = {
        "dataset": chosen.dataset,
        "pairs_removed": pairs,
        "shards_changed": shards,
        "links_removed": links,
    }
    print_result(chosen, result, [removed_sentence(pairs, shards) + others * bool(links)])
    return 0


def _dedup(chosen: argparse.Namespace) -> int:
    from cahlib.core.lock import lock_dataset
    from cahlib.dataset.file_names import require_writable
    from cahlib.dataset.maintain.dedup import remove_duplicates
    from cahlib.dataset.manifest import require_dataset
    from cahlib.dataset.write.shard_writer import recover_interrupted

    _settle(chosen)
    folder = dataset_folder(chosen.dataset)
    if chosen.apply:
        require_dataset(folder)  # before anything is made in a folder that is somebody else's
        require_writable(folder)
        with lock_dataset(folder):
            recover_interrupted(folder)  # what an interrupted change left cannot be read
    found = _found(chosen, folder)
    pairs = shards = 0
    if not chosen.json:
        _print_found(chosen, found)
    if chosen.apply:
        pairs, shards, _ = print_changes(remove_duplicates(folder, found))
    elif len(found.extra):
        print_note("Run it with --apply to remove them.")
    result = {
        "dataset": chosen.dataset,
        "distance": chosen.distance,
        "semantic": chosen.semantic,
        "model": chosen.model or None,
        "against": chosen.against,
        "keep": chosen.keep,
        "images": found.images,
        "duplicates": len(found.extra),
        "examples": [each._asdict() for each in found.examples],
        "applied": chosen.apply,
        "pairs_removed": pairs,
        "shards_changed": shards,
    }
    print_result(chosen, result, [removed_sentence(pairs, shards)] if chosen.apply else ())
    return 0


def _settle(chosen: argparse.Namespace) -> None:
    """Set what was not given; raise ConfigError for an option that would have no effect."""
    if chosen.model and chosen.semantic is None:
        raise ConfigError("dedup: --model names embeddings to compare; give --semantic too.")
    if chosen.semantic is None or chosen.against:
        chosen.distance = 4 if chosen.distance is None else chosen.distance
    elif chosen.distance is not None:
        raise ConfigError(
            "dedup: --semantic compares embeddings, which have no --distance; run it twice to "
            "compare by looks too."
        )
    if not chosen.against:
        chosen.keep = chosen.keep or "largest"
    elif chosen.keep:
        raise ConfigError(
            "dedup: --against removes every image that is like one of the evaluation set, so there "
            "is nothing to choose by --keep; leave it out."
        )


def _found(chosen: argparse.Namespace, folder: Path) -> Duplicates:
    from cahlib.commands.console import progress_bar
    from cahlib.core.wording import plural
    from cahlib.dataset.maintain.contamination import find_contaminated
    from cahlib.dataset.maintain.dedup import find_duplicates, find_same_meaning

    if chosen.against:
        found, sets = find_contaminated(
            folder, chosen.against, chosen.distance, chosen.semantic, model=chosen.model
        )
        for each in sets.taken:
            print_note(f"Compared with {each}.")
        if unreadable := sets.unreadable:
            print_note(
                f"{plural(len(unreadable), 'image file')} of the evaluation set cannot be read "
                f"and could not be compared, {unreadable[0]} among them."
            )
        return found
    if chosen.semantic is None:
        return find_duplicates(folder, chosen.distance, chosen.keep)
    with progress_bar("images") as progress:
        return find_same_meaning(folder, chosen.semantic, chosen.keep, progress, model=chosen.model)


def _print_found(chosen: argparse.Namespace, found: Duplicates) -> None:
    from cahlib.core.wording import plural

    how = "mean the same as" if chosen.semantic and not chosen.against else "look like"
    if chosen.semantic and chosen.against:
        how = "look like or mean the same as"
    what = "one of the evaluation set" if chosen.against else "another of the dataset"
    print(f"{len(found.extra):,} of {found.images:,} images {how} {what}.")
    for each in found.examples:
        bits = "" if each.bits is None else plural(each.bits, "bit")
        print(f"  {bits or f'{each.cosine:.3f}'}: {each.url} is like {each.like}")


def dataset_folder(dataset: str) -> Path:
    """Return the folder of a dataset; raise ConfigError if it is not on this machine."""
    from cahlib.dataset.storage.files import files_at

    if "://" not in dataset:
        return Path(dataset)
    if (there := files_at(dataset)).folder:
        return there.folder
    raise ConfigError(
        f"{there.place} is a URL, and a dataset is changed on the machine that has its folder; "
        "download it first, or change it where its run was, which uploads the change."
    )


def print_changes(changes: Iterable[ShardChange]) -> tuple[int, int, int]:
    """Make changes, and return how many pairs went out of how many shards, and other links."""
    from cahlib.core.wording import plural

    pairs = shards = links = 0
    for change in changes:
        out = sum(change.lost.values())
        pairs, shards, links = pairs + out, shards + bool(out), links + change.links
        print_note(f"{change.shard}: {plural(out, 'pair')} removed, {change.left} left")
    return pairs, shards, links


def removed_sentence(pairs: int, shards: int) -> str:
    """Return a sentence on what was removed."""
    from cahlib.core.wording import plural

    return f"Removed {plural(pairs, 'pair')} from {plural(shards, 'shard')}."
