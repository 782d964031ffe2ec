"""The names of scores, and of the columns in which a dataset has them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cahlib.model.open_nsfw import OPEN_NSFW

#: The name of the score that CLIP itself gives.
SIMILARITY = "similarity"

#: What no name of a column has: blanks and slashes need quoting in SQL, pandas and file names.
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def score_columns(model: str, scores: Iterable[str], *, layout: int) -> dict[str, str]:
    """Return the column of each score that a model gives, by the layout of the dataset.

    `clip_ViT-B-32_openai_similarity`; in layout 1 `ViT-B-32/openai similarity`. What another
    model gives has its own name.
    """
    named = "{} {}" if layout == 1 else "clip_{}_{}"
    columns = {score: named.format(model, score) for score in scores}
    if layout != 1:
        columns = {score: column_name(column) for score, column in columns.items()}
    return columns | {score: score for score in columns if score == OPEN_NSFW}


def column_name(name: str) -> str:
    """Return a name as a column may have it."""
    return _UNSAFE.sub("_", name)
