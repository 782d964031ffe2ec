"""`cah score`: score a finished dataset again, by another model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cahlib.commands.change_dataset import dataset_folder
from cahlib.core.config import Judge, settings
from cahlib.core.errors import MissingSetting
from cahlib.core.terminal import print_note

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    score.add_chosen_settings(*_SETTINGS)
    score.add_argument(
        "--embeddings", action="store_true", help="also keep the vectors of images and texts"
    )
    score.set_defaults(act=_score, extra="gpu")


def _score(chosen: argparse.Namespace) -> int:
    from cahlib.core.wording import plural
    from cahlib.model.model_source import find_source
    from cahlib.model.score_names import similarity_column
    from cahlib.run.score_again import score_dataset

    folder, judge = dataset_folder(chosen.dataset), _judge(vars(chosen))
    pairs = shards = unreadable = 0
    for each in score_dataset(folder, judge, embeddings=chosen.embeddings):
        pairs, shards = pairs + each.pairs, shards + 1
        unreadable += each.unreadable
        print_note(f"{each.shard}: {plural(each.pairs, 'pair')}, mean {each.similarity:.3f}")
    column = similarity_column(find_source(judge).name)
    if not shards:
        print(f"Every shard has the scores of {column} already.")
        return 0
    print(f"Scored {plural(pairs, 'pair')} in {plural(shards, 'shard')}: {column}.")
    if unreadable:
        print_note(f"The model cannot read {plural(unreadable, 'image')}, which have no score.")
    return 0


def _judge(typed: Mapping[str, Any]) -> Judge:
    """Return the settings of the model."""
    given = {
        each.name: each.parse(typed[each.name])
        for each in settings()
        if each.name in _SETTINGS and each.name in typed
    }
    if not {"preset", "model"} & given.keys():
        raise MissingSetting("score: name a model with --preset or --model.")
    return Judge(**given, threshold=-1)
