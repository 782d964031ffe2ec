"""Zero-shot scores: which of some labels an image is most like, by prompts of each.

A file of prompts holds sets of labels, each with its prompts:

    {"topic": {"aerial": ["an aerial photograph"], "x-ray": ["an x-ray image", "a CT scan"],
               "other": ["a photo", "a drawing"]}}

An image is compared with all prompts of a set: softmax of 100 × cosine. A label's score is the
share of its prompts, and the label with the largest share is the image's. A set may also be a list
of concepts, which may be thousands: an image gets the name of the nearest, and no shares. Nothing
here reads images.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cahlib.core.errors import ConfigError
from cahlib.core.path_map import expand_home

#: The prompts of each label of a set, or concepts, each its own prompt and label.
LabelSet: TypeAlias = Mapping[str, Sequence[str]] | Sequence[str]

#: Images that are compared at a time: with 10,000 concepts that takes 40 MB.
_ROWS = 1024


class TextModel(Protocol):
    """The part of a `cahlib.model.clip.Clip` that is needed here."""

    name: str

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return embeddings of length 1: (texts, width)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # arrays have no hash
class PromptSet:
    """The embedded prompts of one set."""

    labels: tuple[str, ...]
    vectors: NDArray[np.float32]  #: (prompts, width)
    label_of: NDArray[np.intp]  #: of each prompt, the number of its label

    def shares(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the share of each label for images of length 1: (images, labels), sum 1."""
        weights = 100 * images @ self.vectors.T
        weights -= weights.max(axis=1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=1, keepdims=True)
        firsts = np.flatnonzero(np.diff(self.label_of, prepend=-1))
        return np.add.reduceat(weights, firsts, axis=1)

    def scores(self, images: NDArray[Any], columns: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return the columns of a set for images as stored: the label, then shares if asked for."""
        labels, shares = np.array(self.labels), list[NDArray[np.float32]]()
        best = np.empty(len(images), np.intp)
        for low in range(0, len(images), _ROWS):
            found = self.shares(images[low : low + _ROWS].astype(np.float32))
            best[low : low + len(found)] = found.argmax(axis=1)
            if columns[1:]:
                shares.append(found)
        every = np.concatenate(shares).T if shares else ()
        return {columns[0]: labels[best], **dict(zip(columns[1:], every, strict=False))}


def read_prompts(path: str) -> Mapping[str, LabelSet]:
    """Return the sets of a file of prompts; raise ConfigError for a bad file."""
    file = expand_home(path)
    content = read_json("prompts", file)
    if fault := next(_faults(content), None):
        raise ConfigError(f"prompts: in {file}, {fault}.")
    return {name: labels for name, labels in content.items() if name != "about"}


def embed_prompts(labels: LabelSet, model: TextModel) -> PromptSet:
    """Return a set with its prompts embedded by a model."""
    if not isinstance(labels, Mapping):
        labels = {each: [each] for each in labels}
    every = [(prompt, number) for number, each in enumerate(labels.values()) for prompt in each]
    return PromptSet(
        labels=tuple(labels),
        vectors=model.embed_texts([prompt for prompt, _ in every]),
        label_of=np.array([number for _, number in every]),
    )


def prompt_columns(name: str, labels: LabelSet) -> tuple[str, ...]:
    """Return the columns of a set: the image's label, then the share of each label.

    Names keep letters and digits of all scripts; those that are alike then are numbered.
    """
    found = [_readable(name)]
    taken = {found[0].casefold()}
    for label in labels if isinstance(labels, Mapping) else ():
        column = plain = _readable(f"{name}_{label}")
        number = 1
        while column.casefold() in taken:
            number += 1
            column = f"{plain}_{number}"
        taken.add(column.casefold())
        found.append(column)
    return tuple(found)


def _readable(name: str) -> str:
    """Return a name without characters that need care in SQL and pandas, such as blanks."""
    return "".join(
        letter
        if letter.isalnum() or letter in "_.-" or unicodedata.category(letter)[0] == "M"
        else "_"
        for letter in unicodedata.normalize("NFC", name)
    )


def read_json(setting: str, file: Path) -> Any:
    """Return the content of a JSON file that a setting names; raise ConfigError for a bad one."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{setting}: {file} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{setting}: {file} is not valid JSON ({error}).") from error


def _faults(content: Any) -> Iterator[str]:
    """Yield what is wrong with a file of prompts."""
    if not isinstance(content, dict) or not content.keys() - {"about"}:
        yield "there is no set of labels with their prompts"
        return
    columns = list[str]()
    for name, labels in content.items():
        if name == "about":
            continue
        if not isinstance(labels, dict | list) or len(labels) < 2:
            yield f'the set "{name}" needs two labels at least; add one for everything else'
            return
        if isinstance(labels, list):
            yield from _faults_of_list(name, labels)
        for label, prompts in labels.items() if isinstance(labels, dict) else ():
            if not (_is_text(name) and _is_text(label)):
                yield f'"{_readable(name)}" has a name without letters or digits'
                return
            if not (isinstance(prompts, list) and prompts and all(map(_is_text, prompts))):
                yield f'"{label}" in the set "{name}" must be a list of texts'
                return
        columns += prompt_columns(name, labels)
    alike = Counter(column.casefold() for column in columns)  # of two sets: within one they differ
    if twice := next((each for each in columns if alike[each.casefold()] > 1), None):
        yield f"two sets give the column {twice}; rename one of them"


def _faults_of_list(name: str, concepts: Sequence[Any]) -> Iterator[str]:
    """Yield what is wrong with a list of concepts."""
    if not _is_text(name):
        yield f'"{_readable(name)}" has a name without letters or digits'
    elif odd := [each for each in concepts if not _is_text(each)]:
        yield f'the set "{name}" lists {odd[0]!r:.40}, which is no text'
    elif len({*concepts}) < len(concepts):
        twice = Counter(concepts).most_common(1)[0][0]
        yield f'the set "{name}" lists "{twice}" twice'


def _is_text(value: Any) -> bool:
    """Return whether a value is a text that says something and that files can hold."""
    if not isinstance(value, str) or not any(letter.isalnum() for letter in value):
        return False
    return value == value.encode("utf-8", "replace").decode()
