"""Find images of a dataset that are in an evaluation set too, so that results on it stay fair.

An evaluation set is a folder, tar or Parquet file of images, another dataset, a matrix of
embeddings (.npy), or a list of perceptual hashes. Its images are compared by how they look and, on
request, by what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cahlib.core.errors import ConfigError, describe_read_error
from cahlib.core.lists import PERCEPTUAL_HASH, read_entries
from cahlib.core.records import DropReason
from cahlib.core.wording import plural
from cahlib.dataset.description import stored_job
from cahlib.dataset.maintain.dedup import (
    Duplicates,
    Example,
    ImageTable,
    evenly,
    read_image_table,
    require_distance,
    require_threshold,
    vectors_of,
)
from cahlib.dataset.maintain.evaluation_images import IMAGE_SUFFIXES, holds_images, images_of
from cahlib.dataset.maintain.similar import ROUNDING, Rows
from cahlib.dataset.manifest import is_dataset, read_manifests
from cahlib.dataset.vectors import Matrix, StoredVectors, unit_rows, vector_models
from cahlib.image.perceptual_hash import looks_of_file, near_pairs, same_colours
from cahlib.model.inputs import DECODE_ERRORS
from cahlib.model.model_source import find_source, named_judge

if TYPE_CHECKING:
    from cahlib.model.clip import Clip

#: Images that are embedded at a time; rows of the set that are compared at a time.
_BATCH, _ROWS = 64, 8192


@dataclass(slots=True, kw_only=True)
class EvaluationSet:
    """The images that a dataset must not have."""

    names: list[str] = field(default_factory=list)  #: of the images with hashes
    hashes: list[int] = field(default_factory=list)
    colours: list[int] = field(default_factory=list)  #: 0 where only hashes are listed
    vector_names: list[str] = field(default_factory=list)
    vectors: list[Matrix] = field(default_factory=list)  #: each row of length 1
    unreadable: list[str] = field(default_factory=list)  #: files that are no readable images
    taken: list[str] = field(default_factory=list)  #: what was read of each set, for people
    model: str = ""  #: that embeds images, as it was named; "" if it was not


def find_contaminated(
    place: str | Path,
    sets: Sequence[str],
    distance: int,
    threshold: float | None = None,
    *,
    model: str = "",
) -> tuple[Duplicates, EvaluationSet]:
    """Find images that look like one of some evaluation sets or, with a threshold, mean the same.

    Return also what was read of the sets.

    Folders of images are embedded by the model of the dataset, or a further one that it has vectors
    by (``model``), which is loaded for that. Raise
    ConfigError if a path is not such a set, or cannot be compared with this dataset.
    """
    require_distance(distance)
    if threshold is not None:
        require_threshold(threshold)
    table = read_image_table(place)
    vectors = None if threshold is None else vectors_of(table, model)
    given = EvaluationSet(model=model)
    for path in sets:
        if path.strip() and Path(path).resolve() == Path(place).resolve():
            raise ConfigError(f"against: {path} is the dataset itself; name an evaluation set.")
        _read_set(path, given, vectors)
    if vectors is not None and not given.vectors:
        raise ConfigError(
            "against: perceptual hashes cannot be compared by meaning; leave --semantic out."
        )
    alike = _looking_alike(table, given, distance)
    if vectors is not None and threshold is not None:
        alike |= _meaning_the_same(vectors, given, threshold)
    rows = np.array(sorted(alike), np.int64)
    return table.removing(rows, DropReason.EVALUATION, _examples(table, rows, alike)), given


def _examples(table: ImageTable, rows: Rows, alike: Mapping[int, Example]) -> Iterator[Example]:
    some = evenly(rows).tolist()
    for row, url in zip(some, table.urls(some), strict=True):
        yield alike[row]._replace(url=url)


def _looking_alike(table: ImageTable, given: EvaluationSet, distance: int) -> dict[int, Example]:
    """Return the rows that look like an image of the sets: its name, and the bits that differ."""
    found: dict[int, Example] = {}
    own, listed = (np.unique(each) for each in (table.hashes, np.array(given.hashes, np.uint64)))
    every = np.union1d(own, listed)
    is_own, is_listed = np.isin(every, own), np.isin(every, listed)
    both = np.flatnonzero(is_own & is_listed)
    pairs = [np.stack([both, both], axis=1)]
    for places in near_pairs(every, distance) if distance else ():
        pairs += [
            each[is_own[each[:, 0]] & is_listed[each[:, 1]]] for each in (places, places[:, ::-1])
        ]
    rows, names = _by_value(table.hashes), _by_value(np.array(given.hashes, np.uint64))
    colours = np.array(given.colours, np.uint64)
    for one, other in np.unique(np.concatenate(pairs), axis=0).tolist():
        bits = (int(every[one]) ^ int(every[other])).bit_count()
        of_set = names(every[other])
        for row in rows(every[one]).tolist():
            same = np.flatnonzero(same_colours(colours[of_set], table.colours[row]))
            if len(same) and (row not in found or bits < (found[row].bits or 0)):
                found[row] = Example("", given.names[of_set[same[0]]], bits=bits)
    return found


def _by_value(values: NDArray[np.uint64]) -> Callable[[np.uint64], Rows]:
    """Return a function from a value to the positions where it is."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]

    def places(value: np.uint64) -> Rows:
        low, high = (
            np.searchsorted(ordered, value, "left"),
            np.searchsorted(ordered, value, "right"),
        )
        return order[low:high]

    return places


def _meaning_the_same(
    vectors: StoredVectors, given: EvaluationSet, threshold: float
) -> dict[int, Example]:
    """Return the rows that mean the same as an image of the sets: its name, and their cosine."""
    found: dict[int, Example] = {}
    every = np.concatenate(given.vectors) if given.vectors else np.empty((0, vectors.width))
    for start, block in vectors.blocks():
        for low in range(0, len(every), _ROWS):
            products = block @ every[low : low + _ROWS].T
            for at in np.flatnonzero(products.max(axis=1) >= threshold - ROUNDING).tolist():
                best = int(products[at].argmax())
                cosine = round(float(products[at, best]), 4)
                if start + at not in found or cosine > (found[start + at].cosine or 0):
                    found[start + at] = Example("", given.vector_names[low + best], cosine=cosine)
    return found


def _read_set(path: str, given: EvaluationSet, vectors: StoredVectors | None) -> None:
    """Add a set to those given."""
    if not path.strip():
        raise ConfigError("against: give a folder or a file.")
    if Path(path).is_dir() and is_dataset(Path(path)):
        _read_dataset(Path(path), given, vectors)
    elif not (Path(path).is_dir() or Path(path).is_file()):
        raise ConfigError(f"against: there is no folder or file {path}; check the path.")
    elif holds_images(Path(path)):
        _read_images(Path(path), given, vectors)
    elif path.endswith(".npy"):
        _read_matrix(path, given, vectors)
    else:
        listed = _listed(path)
        given.names += listed
        given.hashes += [int(each, 16) for each in listed]
        given.colours += [0] * len(listed)
        given.taken.append(f"{path}: {len(listed):,} perceptual hashes")


def _listed(path: str) -> list[str]:
    """Return the hashes that a file lists; raise ConfigError if it is no such list."""
    try:
        listed = list(read_entries(path, "against", PERCEPTUAL_HASH))
    except ConfigError as error:
        raise ConfigError(
            f"{str(error).rstrip('.')}; an evaluation set is a folder, tar or Parquet file of "
            "images, a dataset, embeddings (.npy), or a list of perceptual hashes."
        ) from error
    if not listed:
        raise ConfigError(f"against: {path} lists no perceptual hashes.")
    return listed


def _read_dataset(folder: Path, given: EvaluationSet, vectors: StoredVectors | None) -> None:
    table = read_image_table(folder)
    names = [f"{folder}, uid {each.ljust(16, bytes(1)).hex()}" for each in table.uids.tolist()]
    given.names += names
    given.taken.append(f"{folder}: the {plural(len(names), 'image')} of a dataset")
    given.hashes += table.hashes.tolist()
    given.colours += table.colours.tolist()
    if vectors is not None:
        own = _same_model(table, vectors.model)
        given.vector_names += names
        given.vectors += [block for _, block in own.blocks()]


def _same_model(table: ImageTable, model: str) -> StoredVectors:
    """Return another dataset's embeddings by the same model; raise ConfigError without them."""
    there = {name for each in read_manifests(table.place) for name in vector_models(each)}
    if model in there or not there:
        return vectors_of(table, model if there else "")
    raise ConfigError(
        f"against: {table.place} has embeddings of {' and '.join(sorted(there))}, which cannot be "
        f"compared with those of {model}; leave --semantic out."
    )


def _read_matrix(path: str, given: EvaluationSet, vectors: StoredVectors | None) -> None:
    if vectors is None:
        raise ConfigError(
            f"against: {path} has embeddings, which are compared by meaning; add --semantic, e.g. "
            "--semantic 0.95."
        )
    try:
        matrix = np.load(path, allow_pickle=False)
        if not isinstance(matrix, np.ndarray) or matrix.dtype.kind != "f" or matrix.ndim != 2:
            raise ValueError("it is not a matrix of floats")
    except (OSError, ValueError, EOFError) as error:
        cause = describe_read_error(error)
        raise ConfigError(f"against: {path} cannot be read as embeddings ({cause}).") from error
    if not len(matrix) or matrix.shape[1] != vectors.width:
        raise ConfigError(
            f"against: {path} has {len(matrix)} rows of {matrix.shape[1]} numbers; the embeddings "
            f"of {vectors.model} have {vectors.width}."
        )
    given.vectors.append(unit_rows(matrix.astype(np.float32)))
    given.vector_names += [f"{path}, row {row}" for row in range(len(matrix))]
    given.taken.append(f"{path}: {plural(len(matrix), 'embedding')}")


def _read_images(path: Path, given: EvaluationSet, vectors: StoredVectors | None) -> None:
    clip = None if vectors is None else _load_model(vectors, given.model)
    found = read = 0
    batch = list[tuple[str, Any]]()
    for name, data in images_of(path):
        found += 1
        try:
            looks = looks_of_file(data or b"")
        except DECODE_ERRORS:
            given.unreadable.append(name)
            continue
        read += 1
        given.names.append(name)
        given.hashes.append(int(looks["phash"], 16))
        given.colours.append(int(looks["chroma"], 16))
        if clip and data and (prepared := clip.prepare(data)) is not None:
            batch.append((name, prepared))
        if clip and len(batch) == _BATCH:
            _embed(batch, given, clip)
    if clip and batch:
        _embed(batch, given, clip)
    if not found:
        kinds = f"{', '.join(sorted(IMAGE_SUFFIXES))}, tar or Parquet with bytes"
        raise ConfigError(f"against: {path} contains no image files ({kinds}).")
    if not read:
        raise ConfigError(f"against: none of the image files in {path} can be read.")
    given.taken.append(f"{path}: {plural(read, 'image')}")


def _embed(batch: list[tuple[str, Any]], given: EvaluationSet, clip: Clip) -> None:
    """Add the embeddings of a batch of prepared images, and empty it."""
    names, pixels = zip(*batch, strict=True)
    images, _ = clip.embed(list(pixels), [""] * len(pixels))
    given.vector_names += names
    given.vectors.append(unit_rows(images.astype(np.float32)))
    batch.clear()


def _load_model(vectors: StoredVectors, typed: str) -> Clip:
    """Return the model that made the embeddings; raise ConfigError if it cannot be loaded."""
    job = stored_job(Path(vectors.files[0].place))
    if typed and typed != vectors.model:
        judge = named_judge("model", typed)
    elif job and find_source(job.judge).name == vectors.model:
        judge = job.judge  # which has the folder of a model of one's own
    else:
        judge = named_judge("model", vectors.model)
    from cahlib.model.clip import load_clip

    return load_clip(judge)
