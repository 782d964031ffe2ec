"""Zero-shot scores: which of some labels an image is most like, by prompts of each.

A file of prompts holds sets of labels, each with its prompts:

    {"topic": {"aerial": ["an aerial photograph"], "x-ray": ["an x-ray image", "a CT scan"],
               "other": ["a photo", "a drawing"]}}

An image is compared with all prompts of a set: softmax of 100 × cosine. A label's score is the
share of its prompts, and the label with the largest share is the image's. Nothing here reads
images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cahlib.core.errors import ConfigError
from cahlib.core.path_map import expand_home
from cahlib.model.score_names import column_name

#: The prompts of each label of each set.
PromptFile = Mapping[str, Mapping[str, Sequence[str]]]


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
        logits = 100 * images @ self.vectors.T
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        found = np.zeros((len(images), len(self.labels)), np.float32)
        for label in range(len(self.labels)):
            found[:, label] = weights[:, self.label_of == label].sum(axis=1)
        return found


def read_prompts(path: str) -> PromptFile:
    """Return the sets of a file of prompts; raise ConfigError for a bad file."""
    file = expand_home(path)
    content = read_json("prompts", file)
    if fault := next(_faults(content), None):
        raise ConfigError(f"prompts: in {file}, {fault}.")
    return {name: labels for name, labels in content.items() if name != "about"}


def embed_prompts(labels: Mapping[str, Sequence[str]], model: TextModel) -> PromptSet:
    """Return a set with its prompts embedded by a model."""
    every = [(prompt, number) for number, each in enumerate(labels.values()) for prompt in each]
    return PromptSet(
        labels=tuple(labels),
        vectors=model.embed_texts([prompt for prompt, _ in every]),
        label_of=np.array([number for _, number in every]),
    )


def prompt_columns(name: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a set: the image's label, then the share of each label."""
    return column_name(name), *(column_name(f"{name}_{label}") for label in labels)


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
        if not isinstance(labels, dict) or len(labels) < 2:
            yield f'the set "{name}" needs two labels at least; add one for everything else'
            return
        for label, prompts in labels.items():
            if not (_is_text(name) and _is_text(label)):
                yield f'"{column_name(name)}" has a name without letters or digits'
                return
            if not (isinstance(prompts, list) and prompts and all(map(_is_text, prompts))):
                yield f'"{label}" in the set "{name}" must be a list of texts'
                return
        columns += prompt_columns(name, [*labels])
    lower = [column.lower() for column in columns]
    if twice := next((each for each in columns if lower.count(each.lower()) > 1), None):
        yield f"two names give the column {twice}; a column has a to z, digits and _.- alone"


def _is_text(value: Any) -> bool:
    """Return whether a value is a text that says something and that files can hold."""
    if not isinstance(value, str) or not any(letter.isalnum() for letter in value):
        return False
    return value == value.encode("utf-8", "replace").decode()
