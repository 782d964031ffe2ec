"""Heads: small models that score an image by its embedding, for aesthetics, safety or else.

A head is a JSON file that describes it, and a safetensors file of the same name beside it:

    {"name": "aesthetic", "backbone": "ViT-L-14/openai", "width": 768, "kind": "linear",
     "threshold": 5.0, "drop": "below"}

``kind`` is "linear" or "mlp"; an mlp has an ``activation`` ("relu", "gelu" or "none") between its
layers. ``output`` may be "sigmoid". ``drop`` is the side of the threshold that is dropped: "below"
or "above"; without a threshold the head only scores. Tensors are named ``….weight`` (out, in) and
``….bias`` and ordered by their numbers, as torch.nn.Sequential names them.

A head is given the embedding as it is stored (float16, length 1), so its scores are reproducible.
Nothing here knows what a score means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from cahlib.core.errors import ConfigError
from cahlib.core.path_map import expand_home
from cahlib.model.open_nsfw import OPEN_NSFW
from cahlib.model.safety import SAFETY_SCORES
from cahlib.model.score_names import SIMILARITY, column_name

Floats = NDArray[np.float32]


class EmbeddingModel(Protocol):
    """The part of a `cahlib.model.clip.Clip` that is needed here."""

    @property
    def name(self) -> str:
        """The name of model and weights."""

    @property
    def dim(self) -> int:
        """The width of its embeddings."""


class _Card(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A head's JSON file."""

    name: str
    backbone: str
    width: int
    kind: Literal["linear", "mlp"]
    activation: Literal["relu", "gelu", "none"] = "none"
    output: Literal["none", "sigmoid"] = "none"
    threshold: float | None = None
    drop: Literal["below", "above"] | None = None
    about: str = ""


_decoder = msgspec.json.Decoder(_Card)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # arrays have no hash
class Head:
    """A loaded head that fits the model of the run."""

    score: str  #: the name of its scores
    card: _Card
    layers: tuple[tuple[Floats, Floats], ...]  #: weight (out, in) and bias (out,)

    def scores(self, embeddings: NDArray[Any]) -> Floats:
        """Return a score for each image, from embeddings as they are stored: (images, width)."""
        values = embeddings.astype(np.float32)
        for weight, bias in self.layers[:-1]:
            values = _ACTIVATIONS[self.card.activation](values @ weight.T + bias)
        weight, bias = self.layers[-1]
        last = (values @ weight.T + bias)[:, 0]
        return _sigmoid(last) if self.card.output == "sigmoid" else last

    def drops(self, score: float) -> bool:
        """Return whether an image with this score is dropped."""
        if self.card.threshold is None:
            return False
        below = score < self.card.threshold
        return below if self.card.drop == "below" else score > self.card.threshold


def describe_head(path: str) -> tuple[str, str]:
    """Return the name of a head's score and of its model; raise ConfigError for a bad file."""
    card = _card(expand_home(path))
    return card.name, card.backbone


def load_heads(paths: Sequence[str], model: EmbeddingModel) -> tuple[Head, ...]:
    """Load the heads of JSON files; raise ConfigError for one that is invalid or does not fit."""
    check_heads(paths, model.name)
    return tuple(_load(expand_home(path), model) for path in paths)


def check_heads(paths: Sequence[str], model: str) -> None:
    """Raise ConfigError for files that do not describe heads for the model of this name.

    Each needs a name of its own, for its column.
    """
    columns = {column_name(name) for name in (SIMILARITY, *SAFETY_SCORES.values(), OPEN_NSFW)}
    for path in paths:
        card = _card_for(expand_home(path), model)
        if column_name(card.name) in columns:
            raise ConfigError(
                f"heads: {path}: another score is called {card.name!r} already; give each head a "
                "name of its own."
            )
        columns.add(column_name(card.name))


def _load(path: Path, model: EmbeddingModel) -> Head:
    card = _card_for(path, model.name)
    if card.width != model.dim:
        raise ConfigError(
            f"heads: {path} expects embeddings of {card.width} numbers, and those of {model.name} "
            f"have {model.dim}."
        )
    layers = _layers(path.with_suffix(".safetensors"))
    if fault := next(_faults(card, layers), None):
        raise ConfigError(f"heads: {path.with_suffix('.safetensors')} {fault}.")
    return Head(score=card.name, card=card, layers=layers)


def _card(path: Path) -> _Card:
    try:
        card = _decoder.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"heads: {path} cannot be read ({error.strerror}).") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"heads: {path} does not describe a head: {error}.") from error
    if not re.fullmatch(r"[A-Za-z0-9][\w .-]{0,40}", card.name):
        raise ConfigError(f"heads: {path}: give a name of letters and digits, for its column.")
    if (card.threshold is None) != (card.drop is None):
        raise ConfigError(
            f'heads: {path}: give both a threshold and "drop" ("below" or "above"), or neither.'
        )
    return card


def _card_for(path: Path, model: str) -> _Card:
    """Return a head's description; raise ConfigError if it is for another model."""
    card = _card(path)
    if card.backbone != model:
        raise ConfigError(
            f"heads: {path} is for embeddings of {card.backbone}, and this run's are of "
            f"{model}; choose that model, or leave the head out."
        )
    return card


def _layers(path: Path) -> tuple[tuple[Floats, Floats], ...]:
    """Return the layers of a file in the order of their numbers; a missing bias is 0."""
    # here: a run without a judge has no such library
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except OSError as error:
        raise ConfigError(f"heads: {path} cannot be read ({error.strerror or error}).") from error
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"heads: {path} is not a suitable safetensors file: {error}.") from error
    names = sorted((each for each in tensors if each.endswith("weight")), key=_in_order)
    biases = {name.removesuffix("weight") + "bias" for name in names}
    if not names or (other := tensors.keys() - {*names, *biases}):
        what = f"the tensor {min(other)}" if names else "no weight"
        raise ConfigError(f"heads: {path} holds {what}, and not only weights with their biases.")
    return tuple(_layer(tensors, name) for name in names)


def _layer(tensors: Mapping[str, NDArray[np.generic]], name: str) -> tuple[Floats, Floats]:
    weight = np.atleast_2d(tensors[name]).astype(np.float32)
    zero = np.zeros(len(weight), np.float32)
    bias = tensors.get(name.removesuffix("weight") + "bias", zero)
    return weight, np.ravel(bias).astype(np.float32)


def _faults(card: _Card, layers: Sequence[tuple[Floats, Floats]]) -> Iterator[str]:
    """Yield what is wrong with the layers of a head."""
    if card.kind == "linear" and len(layers) > 1:
        yield f"has {len(layers)} layers, and a linear head has one"
    wide = card.width
    for weight, bias in layers:
        if weight.ndim != 2 or weight.shape[1] != wide or bias.shape != (len(weight),):
            yield f"has a layer of shape {weight.shape} for an input of {wide} numbers"
            return
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            yield "contains NaN or infinity"
        wide = len(weight)
    if wide != 1:
        yield f"returns {wide} numbers instead of one score"


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which layers.10 comes after layers.2."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _gelu(values: Floats) -> Floats:
    """Return the tanh form (Hendrycks and Gimpel 2016), within 0.001 of the exact one."""
    inner = math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)
    share: Floats = np.asarray((1 + np.tanh(inner)) / 2, np.float32)
    return values * share


def _relu(values: Floats) -> Floats:
    return values * (values > 0)


def _sigmoid(values: Floats) -> Floats:
    return (1 / (1 + np.exp(-np.clip(values, -80, 80)))).astype(np.float32)


_ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "relu": _relu,
    "gelu": _gelu,
    "none": lambda values: values,
}
