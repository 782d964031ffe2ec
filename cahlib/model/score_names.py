"""Names of the scores, and of their columns in a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cahlib.model.open_nsfw import OPEN_NSFW

#: The name of CLIP's own score.
SIMILARITY = "similarity"

#: Not in names of columns: blanks and slashes need quoting in SQL, pandas and file names.
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def score_columns(model: str, scores: Iterable[str], *, layout: int) -> dict[str, str]:
    """Return the column of each of a model's scores, by the layout of the dataset.

    `clip_ViT-B-32_openai_similarity`; in layout 1 `ViT-B-32/openai similarity`. Open NSFW's score
    has its own name.
    """
    named = "{} {}" if layout == 1 else "clip_{}_{}"
    columns = {score: named.format(model, score) for score in scores}
    if layout != 1:
        columns = {score: column_name(column) for score, column in columns.items()}
    return columns | {score: score for score in columns if score == OPEN_NSFW}


def similarity_column(model: str) -> str:
    """Return the column of the similarity by a model that is not the dataset's own."""
    return score_columns(model, [SIMILARITY], layout=2)[SIMILARITY]


def column_name(name: str) -> str:
    """Return a name without characters that columns may not have."""
    return _UNSAFE.sub("_", name)
