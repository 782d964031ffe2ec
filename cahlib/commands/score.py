"""`cah score`: score a finished dataset again, by another model, by prompts or by a head."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cahlib.commands.change_dataset import dataset_folder
from cahlib.commands.console import print_result
from cahlib.core.config import Judge, settings
from cahlib.core.errors import ConfigError, MissingSetting
from cahlib.core.presets import PRESETS
from cahlib.core.terminal import print_note

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cahlib.run.score_again import ScoredShard

_SETTINGS = ("preset", "model", "pretrained", "batch", "device")


def add(commands: Any) -> None:
    """Add the command."""
    score = commands.add_parser(
        "score",
        help="score a dataset again, by another model",
        description="Score the pairs of a finished dataset by another model. Its similarity "
        "becomes a\ncolumn of the metadata; with --embeddings, its vectors become files beside the "
        "others.\nSafe to interrupt and rerun: shards that have these scores are left out.",
        example="cah score demo-dataset --preset quality --embeddings",
    )
    score.add_dataset("folder of a dataset")
    score.add_argument(
        "--preset", metavar="|".join(PRESETS), default=argparse.SUPPRESS, help="a preset's model"
    )
    score.add_chosen_settings(*_SETTINGS[1:])
    score.add_argument(
        "--embeddings", action="store_true", help="also keep the vectors of images and texts"
    )
    score.add_argument(
        "--prompts", metavar="FILE", default="",
        help="score the vectors that are stored by the prompts of a JSON file, without an image",
    )  # fmt: skip
    score.add_argument(
        "--head", metavar="FILE", default="",
        help="score the vectors that are stored by a head's JSON file, without an image",
    )  # fmt: skip
    score.add_json()
    score.set_defaults(act=_score, extra="gpu")


def _score(chosen: argparse.Namespace) -> int:
    from cahlib.core.wording import plural

    given = [f"--{each}" for each in ("prompts", "head", "embeddings") if getattr(chosen, each)]
    if len(given) > 1:
        raise ConfigError(f"score: {given[0]} and {given[1]} exclude each other; run it twice.")
    pairs = shards = unreadable = 0
    columns: tuple[str, ...] = ()
    for each in _scored(chosen, dataset_folder(chosen.dataset)):
        pairs, shards = pairs + each.pairs, shards + 1
        unreadable, columns = unreadable + each.unreadable, each.columns
        mean = "" if each.mean is None else f", mean {each.mean:.3f}"
        print_note(f"{each.shard}: {plural(each.pairs, 'pair')}{mean}")
    result = {
        "dataset": chosen.dataset,
        "shards": shards,
        "pairs": pairs,
        "unreadable": unreadable,
        "columns": [*columns],
    }
    added = ", ".join(columns) or "vectors"
    done = f"Scored {plural(pairs, 'pair')} in {plural(shards, 'shard')}: {added}."
    print_result(chosen, result, [done if shards else "Every shard has these scores already."])
    if unreadable:
        print_note(f"The model cannot read {plural(unreadable, 'image')}, which have no score.")
    return 0


def _scored(chosen: argparse.Namespace, folder: Path) -> Iterator[ScoredShard]:
    """Score by what the command names: prompts, a head, or a model."""
    from cahlib.model.model_source import typed_judge
    from cahlib.run.score_again import score_dataset
    from cahlib.run.score_vectors import dataset_judge, score_by_head, score_by_prompts

    typed = vars(chosen)
    given = {
        each.name: each.parse(typed[each.name])
        for each in settings()
        if each.name in _SETTINGS and each.name in typed
    }
    named = {"preset", "model", "pretrained"} & given.keys()
    if chosen.head:
        if named:
            raise ConfigError(f"score: a head names its model itself; leave out --{min(named)}.")
        return score_by_head(folder, chosen.head)
    if not named and chosen.prompts:
        return score_by_prompts(folder, chosen.prompts, replace(dataset_judge(folder), **given))
    if not {"preset", "model"} & named:
        raise MissingSetting("score: name a model with --preset or --model.")
    judge = Judge(**given, threshold=-1)
    if "model" in named:
        named_by = typed_judge(judge.model, judge.pretrained)
        judge = replace(named_by, device=judge.device, batch=judge.batch)
    if chosen.prompts:
        return score_by_prompts(folder, chosen.prompts, judge)
    return score_dataset(folder, judge, embeddings=chosen.embeddings)
