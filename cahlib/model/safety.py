"""The safety rules of Crawling@Home, zero-shot on the embedding of an image.

An image is compared with sets of labelled prompts: softmax of 100 × cosine, and the two best
prompts decide.

1. content: NSFW if both of the two best prompts are sexual, UNSURE if one is, else UNLIKELY.
2. age: what is not UNLIKELY is dropped if a minor is among the two best, or if the caption contains
   one of the words.
3. animal: what is not UNLIKELY is dropped if the best is an animal.

The rules are those of rvencu/crawlingathome-gpu-hcloud, ``clip_filter.py`` (2021). It compared
positions in a list that a missing comma had made one shorter, so its first sexual prompt counted as
neutral; here each prompt has its label. The prompts are in ``safety.json``; most of them are
cahlib's own wording, so results differ from LAION's. A file of the same form may replace them:
``content`` is required; without ``age`` or ``animal`` that rule is off. Words match anywhere in the
caption, in any case: they must find kids, schoolchild, preteen and thirteen, and dropping a canteen
is the lesser harm.

The rules were made for OpenAI's ViT-B/32. They find much and miss some; they prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahlib.core.errors import ConfigError
from cahlib.core.path_map import expand_home
from cahlib.core.records import DropReason
from cahlib.model.prompts import TextModel, read_json

#: The labels in each set.
_MARKS = {
    "content": ("neutral", "sexual"),
    "age": ("minor", "adult"),
    "animal": ("thing", "person", "animal"),
}
SAFETY_SCORES = {"content": "sexual", "age": "minor", "animal": "animal"}

#: The column NSFW, by the number of sexual prompts among the two best.
_NSFW = ("UNLIKELY", "UNSURE", "NSFW")


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyVerdict:
    """The result of the rules for one image."""

    nsfw: str  #: "UNLIKELY", "UNSURE" or "NSFW"
    reason: DropReason | None  #: MINOR, ANIMAL, or None
    #: "sexual", "minor", "animal": the share of the softmax, 0 … 1
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    """Embedded prompts."""

    vectors: NDArray[np.float32]  #: (prompts, width)
    sought: NDArray[np.bool_]  #: of each prompt, whether it has the label that the rule looks for

    def compare(self, images: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the share of sought prompts, and whether the two best are sought: (images, 2)."""
        logits = 100 * images @ self.vectors.T
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        share = weights[:, self.sought].sum(axis=1) / weights.sum(axis=1)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :2]
        return share, self.sought[best]


def read_safety_rules(path: str) -> dict[str, Any]:
    """Return the sets of a file, or the built-in ones for ""; raise ConfigError for a bad file."""
    file = expand_home(path) if path else Path(__file__).with_name("safety.json")
    content = read_json("safety", file)
    if fault := next(_faults(content), None):
        raise ConfigError(f"safety: in {file}, {fault}.")
    return {name: marks for name, marks in content.items() if name != "about"}


class Safety:
    """The rules, with their prompts embedded by one model."""

    def __init__(self, sets: Mapping[str, Mapping[str, Sequence[str]]], model: TextModel) -> None:
        """Embed the prompts: ``sets`` holds them by set and label, as files do."""
        self._sets = {name: _embedded(name, marks, model) for name, marks in sets.items()}
        self._words = [word.casefold() for word in sets.get("age", {}).get("words", ())]

    @classmethod
    def load(cls, path: str, model: TextModel) -> Safety:
        """Return the rules of a file, or the built-in ones; raise ConfigError for a bad file."""
        return cls(read_safety_rules(path), model)

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the scores in each verdict."""
        return tuple(SAFETY_SCORES[name] for name in self._sets)

    def judge(self, images: NDArray[np.float32], texts: Sequence[str]) -> list[SafetyVerdict]:
        """Return a verdict for each image, (images, width) of length 1, and its caption."""
        found = {name: each.compare(images) for name, each in self._sets.items()}
        labels = found["content"][1].sum(axis=1)
        minors = np.array([self._names_a_minor(text) for text in texts], dtype=bool)
        if "age" in found:
            minors |= found["age"][1].any(axis=1)
        animals = found["animal"][1][:, 0] if "animal" in found else np.zeros_like(minors)
        return [
            SafetyVerdict(
                nsfw=_NSFW[label],
                reason=_reason(unsafe=label > 0, minor=minors[row], animal=animals[row]),
                scores={
                    SAFETY_SCORES[name]: float(share[row]) for name, (share, _) in found.items()
                },
            )
            for row, label in enumerate(labels)
        ]

    def _names_a_minor(self, text: str) -> bool:
        text = text.casefold()
        return any(word in text for word in self._words)


def _reason(*, unsafe: bool, minor: bool, animal: bool) -> DropReason | None:
    if unsafe and minor:
        return DropReason.MINOR
    return DropReason.ANIMAL if unsafe and animal else None


def _embedded(name: str, marks: Mapping[str, Sequence[str]], model: TextModel) -> _Set:
    prompts = [(prompt, mark) for mark in _MARKS[name] for prompt in marks[mark]]
    return _Set(
        vectors=model.embed_texts([prompt for prompt, _ in prompts]),
        sought=np.array([mark == SAFETY_SCORES[name] for _, mark in prompts]),
    )


def _faults(content: Any) -> Iterator[str]:
    """Yield what is wrong with a file of rules."""
    if not isinstance(content, dict) or "content" not in content:
        yield 'the set "content" is missing'
        return
    for name, marks in content.items():
        if name == "about":
            continue
        if name not in _MARKS:
            yield f'"{name}" is not a set; the sets are {", ".join(_MARKS)}'
        else:
            yield from _faults_of_set(name, marks)


def _faults_of_set(name: str, marks: Any) -> Iterator[str]:
    needed = _MARKS[name]
    allowed = (*needed, "words") if name == "age" else needed
    if not isinstance(marks, dict) or not set(needed) <= marks.keys() <= set(allowed):
        yield f'the set "{name}" must hold the lists {", ".join(allowed)} and nothing else'
        return
    for mark, prompts in marks.items():
        if not isinstance(prompts, list) or not all(isinstance(p, str) and p for p in prompts):
            yield f'"{mark}" in the set "{name}" must be a list of texts'
            return
    prompts = [prompt for mark in needed for prompt in marks[mark]]
    if len(prompts) < 2:
        yield f'the set "{name}" needs two prompts at least'
    for prompt in prompts:
        if prompts.count(prompt) > 1:
            yield f'the prompt "{prompt}" is in the set "{name}" twice'
