"""The layout of a dataset: where its files are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

#: The path of each part of a shard, by form; metadata, evidence and outcomes do not depend on the
#: forms. A tar may have a number instead, which its manifest knows.
LAYOUT: Mapping[str, str] = {
    "metadata": "metadata/metadata_{}.parquet",
    "images": "images/{}.tar",
    "img_emb": "img_emb/img_emb_{}.npy",
    "text_emb": "text_emb/text_emb_{}.npy",
    "tfrecords": "tfrecords/{}.tfrecord",
    "optouts": "optouts/{}.jsonl",
    "outcomes": "outcomes/{}.parquet",
}

#: The version of a new dataset's columns and of the names of its score columns and tars. A dataset
#: keeps the layout it began with; 1 is that of an older cahlib.
CURRENT_LAYOUT = 2

#: The folder of the shards' manifests.
MANIFESTS = "shards"

#: The folders of a dataset.
FOLDERS = (*(path.split("/")[0] for path in LAYOUT.values()), MANIFESTS)

#: What the folders of the vectors of further models are called after a dot: `img_emb.<model>`.
FURTHER_SUFFIX = r"\.[A-Za-z0-9_.-]+"

_FURTHER = re.compile(rf"(?:img_emb|text_emb){FURTHER_SUFFIX}")

#: Files about the whole dataset, rewritten each time, with what identifies them as cahlib's.
PAGES: Mapping[str, re.Pattern[bytes]] = {
    "report.html": re.compile(rb'<meta name="generator" content="cahlib">'),
    "README.md": re.compile(rb"\d shards? of [\w ]+, found by cahlib\. "),
}

_NUMBERED = re.compile(r"images/(\d{5,})\.tar")

#: The form that re-encodes other formats as JPEG, so that all samples have the same extension.
ONE_EXTENSION = "images:jpg"


def has_images(forms: Collection[str]) -> bool:
    """Return whether these forms store pictures in tars."""
    return "images" in forms or ONE_EXTENSION in forms


def tar_number(path: str) -> int | None:
    """Return the number of a tar, or None if it has the name of its shard."""
    found = _NUMBERED.fullmatch(path)
    return int(found[1]) if found else None


def part_path(form: str, shard: str) -> str:
    """Return the path of a shard's part in the dataset."""
    return LAYOUT[form].format(shard)


def vectors_path(form: str, shard: str, model: str = "") -> str:
    """Return the path of a shard's vectors, those of a further model by its name in columns.

    ``form`` is "img_emb" or "text_emb"; without a model, these are the dataset's own.
    """
    own = part_path(form, shard)
    return f"{form}.{model}/{own.partition('/')[2]}" if model else own


def further_model(path: str) -> str | None:
    """Return the model whose vectors a file holds, or None if it is no further model's."""
    folder = path.partition("/")[0]
    return folder.partition(".")[2] if _FURTHER.fullmatch(folder) else None


def shard_paths(shard: str, present: Iterable[str]) -> set[str]:
    """Return the paths that a shard's parts may have, but for a numbered tar.

    ``present`` are folders in the dataset's root, among them those of further models.
    """
    further = {
        vectors_path(form, shard, model)
        for form, _, model in (name.partition(".") for name in present if _FURTHER.fullmatch(name))
    }
    return {path.format(shard) for path in LAYOUT.values()} | further


def dataset_folders(present: Iterable[str]) -> tuple[str, ...]:
    """Return the folders of a dataset: those of further models are among the ``present`` ones."""
    return (*FOLDERS, *sorted(name for name in present if _FURTHER.fullmatch(name)))
