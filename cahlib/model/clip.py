"""Load a CLIP model by open_clip, and compute embeddings of images and texts.

    judge = Judge(preset="laion400m")
    clip = load(judge)
    pixels = clip.prepare(data)
    of_images, of_texts = clip.embed([pixels], ["a photo of a cat"])

Nothing here knows pairs, thresholds, or where images come from. Threads may share a `Clip`; it
holds a copy of the model on each device.
"""

from __future__ import annotations

import copy
import logging
import os
import pickle
import queue
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from cahlib.core.config import Judge
from cahlib.core.errors import ConfigError, RunError
from cahlib.image.thumbs import read_plain_jpeg, read_thumb
from cahlib.model.cpu import packable_tower
from cahlib.model.device_model import DeviceModel, Vectors
from cahlib.model.frameworks import open_clip, torch
from cahlib.model.inputs import GroupedTokenizer, PixelArray, fast_step, preprocess, thumb_side
from cahlib.model.model_source import ModelSource, find_source, require_known_model
from cahlib.model.pretrained import find_weights_info, image_options

#: A CPU computes more images at once no faster (ViT-B/32: from 4 at once on).
_CPU_BATCH = 32

#: Texts that are packed together: as many as a batch has by default.
_ROW = 256

#: What open_clip, torch and safetensors raise for unsuitable files.
_UNFIT = (
    OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    ArithmeticError, EOFError, ImportError, pickle.UnpicklingError, SafetensorError,
)  # fmt: skip


class Clip:
    """A model with its tokenizer and preprocessing, on one or more devices."""

    def __init__(
        self, name: str, model: Any, *, transform: Any, tokenizer: Any, devices: Sequence[str]
    ) -> None:
        """``model``, ``transform`` (of inference) and ``tokenizer`` are open_clip's."""
        self.name = name  #: model and weights: "ViT-B-32/openai"
        self.devices = tuple(devices)  #: "cpu", "mps", "cuda:0" …
        kind = self.devices[0].partition(":")[0]
        on_cpu = kind == "cpu"
        self.batch = _CPU_BATCH if on_cpu else sys.maxsize  #: most images at once that help
        # Two calls at a time keep a GPU busy: one is prepared while the other is computed. On a
        # CPU each has half of the cores, so that threads wait less for each other.
        self.slots = len(self.devices) * (1 if kind == "mps" else 2)  #: calls of `embed` at a time
        if on_cpu:
            torch.set_num_threads(min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) // 2)))
        # The last two steps turn an image into floats, which is faster for a batch on its device.
        self._steps = [fast_step(step) for step in transform.transforms[:-2]]
        size = 64 if not on_cpu else 16 if packable_tower(model) is None else _ROW
        self.thumb = thumb_side(self._steps)  #: the side of thumbs that it can use, or 0
        self._tokens = GroupedTokenizer(tokenizer, padding=_padding(model), size=size)
        models = [model, *(copy.deepcopy(model) for _ in self.devices[1:])]
        self._replicas = [DeviceModel(*each) for each in zip(models, self.devices, strict=True)]
        self._free: queue.SimpleQueue[DeviceModel] = queue.SimpleQueue()
        for replica in self._replicas * (self.slots // len(self.devices)):
            self._free.put(replica)
        self.dim = self.embed_texts([""]).shape[1]  #: width of the embeddings

    def prepare(self, data: bytes, thumb: bytes = b"") -> PixelArray | None:
        """Decode, resize and crop an image as open_clip does; return None if it is unreadable.

        Shape (height, width, 3), uint8. A thumb is decoded instead if it has the model's size. May
        be called from many threads.
        """
        pixels = None
        if self.thumb:
            pixels = read_thumb(thumb, self.thumb) if thumb else read_plain_jpeg(data, self.thumb)
        return preprocess(data, self._steps) if pixels is None else pixels

    def embed(self, pixels: Sequence[PixelArray], texts: Sequence[str]) -> tuple[Vectors, Vectors]:
        """Return the embeddings of images and of as many texts, row by row.

        A batch too large for the device's memory is divided, and so are later ones. Raise RunError
        if not even one image fits.
        """
        replica = self._free.get()
        try:
            parts = list(self._in_parts(replica, pixels, texts))
        finally:
            self._free.put(replica)
        return np.concatenate([i for i, _ in parts]), np.concatenate([t for _, t in parts])

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Return the embeddings of texts alone."""
        groups, rows = self._tokens(texts)
        replica = self._free.get()
        try:
            return replica.embed([], groups)[rows]
        finally:
            self._free.put(replica)

    def worked(self) -> float:
        """Return the seconds for which the model was busy, as the mean of its devices."""
        return sum(replica.clock.seconds() for replica in self._replicas) / len(self._replicas)

    def _in_parts(
        self, replica: DeviceModel, pixels: Sequence[PixelArray], texts: Sequence[str]
    ) -> Iterator[tuple[Vectors, Vectors]]:
        start = 0
        while start < len(texts):
            end = min(start + replica.limit, len(texts))
            groups, rows = self._tokens(texts[start:end])
            try:
                both = replica.embed(pixels[start:end], groups)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if end - start == 1:
                    raise RunError(
                        f"the memory of {replica.device} is too small for one image with "
                        f"{self.name}; end what else uses it, or choose a smaller model."
                    ) from error
                both = None
            if both is None:  # not in the except clause: there the error still holds the memory
                replica.shrink((end - start) // 2)
                continue
            yield both[: end - start], both[end - start :][rows]
            start = end


def load_clip(judge: Judge, *, devices: Sequence[str] = ()) -> Clip:
    """Load the model that the settings name, on the devices given or all that they allow.

    Raise ConfigError if it does not exist, cannot be downloaded or does not fit together.
    """
    devices = devices or _devices(judge.device)
    source = find_source(judge)
    if source.listed:
        require_known_model(source)
        require_known_weights(source)
    with _quiet():
        model, transform, tokenizer = _open(source)
    return Clip(source.name, model, transform=transform, tokenizer=tokenizer, devices=devices)


def require_known_weights(source: ModelSource) -> None:
    """Raise ConfigError if open_clip does not know the weights by their name."""
    name, weights = source.model, source.pretrained or ""
    if not Path(weights).is_file() and not open_clip.get_pretrained_cfg(name, weights):
        tags = open_clip.list_pretrained_tags_by_model(name)
        near = ", ".join(get_close_matches(weights, tags, cutoff=0))
        what = f"has no weights called {weights!r}" if weights else "needs weights"
        more = f", or some that open_clip has: {near}" if near else ""
        raise ConfigError(f"pretrained: {name} {what}; name a file of them{more}.")
    find_weights_info(name, weights)


def _open(source: ModelSource) -> tuple[Any, Any, Any]:
    """Load model, transform and tokenizer by open_clip."""
    if source.config:
        open_clip.add_model_config(source.config)
    # open_clip builds ViT-B-32 with GELU even for OpenAI's weights, which were trained with
    # QuickGELU, and only warns; its record of the weights is right.
    described = source.config is not None
    known = find_weights_info(source.model, source.pretrained or "", described=described)
    bpe = {"bpe_path": str(source.bpe)} if source.bpe else {}
    try:
        # Not create_model_and_transforms: without weights it continues with random ones.
        model, transform = open_clip.create_model_from_pretrained(
            source.model,
            source.pretrained,
            force_quick_gelu=bool(known.get("quick_gelu")),
            **image_options(known),
        )
        tokenizer = open_clip.get_tokenizer(source.model, **bpe)
    except _UNFIT as error:
        raise ConfigError(_why(source, error)) from error
    words = getattr(tokenizer, "vocab_size", model.vocab_size)
    if words > model.vocab_size:
        raise ConfigError(
            f"model: {source.name} knows {model.vocab_size} tokens, but its tokenizer {words}; "
            "put the bpe.txt.gz that it was trained with into its folder."
        )
    return model, transform, tokenizer


def _why(source: ModelSource, error: Exception) -> str:
    text = str(error).rpartition("Last error: ")[2]
    cause = text.strip().partition("\n")[0].partition(". ")[0].rstrip(".:")
    if isinstance(error, ImportError) or "pip install" in text:
        return f"model: {source.name} needs one more package; type: pip install transformers"
    if any(sign in str(error) for sign in ("download", "connect", "offline")):
        return (
            f"model: {source.name} could not be downloaded ({cause}); check the network, or name "
            "the folder of a model on this machine."
        )
    if "weights only" in str(error).lower():
        return (
            f"model: the weights of {source.name} hold more than numbers, which is not loaded; "
            "save their state dict as a .safetensors file."
        )
    return (
        f"model: {source.name} could not be loaded; its files are damaged or do not belong "
        f"together ({cause})."
    )


def _devices(choice: str) -> list[str]:
    found = {
        "cuda": [f"cuda:{i}" for i in range(torch.cuda.device_count() * torch.cuda.is_available())],
        "mps": ["mps"] if torch.backends.mps.is_available() else [],
        "cpu": ["cpu"],
    }
    if choice == "auto":
        return found["cuda"] or found["mps"] or found["cpu"]
    if not found[choice]:
        raise ConfigError(f"device: torch finds no {choice} on this machine; choose auto or cpu.")
    return found[choice]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip's log in this thread, and its warnings; its error says more of a failure.

    To switch all logging off and on again would lose lines of other threads; and of two threads
    that load a model at once, the second would switch it off for good.
    """
    warnings.filterwarnings("ignore", module="open_clip|timm")
    loading = threading.get_ident()

    def is_of_another(record: logging.LogRecord) -> bool:
        return record.thread != loading

    logs = (logging.root, *logging.getLogger("huggingface_hub").handlers)
    for each in logs:
        each.addFilter(is_of_another)
    try:
        yield
    finally:
        for each in logs:
            each.removeFilter(is_of_another)


def _padding(model: Any) -> int | None:
    """Return the token after a text's end that may be cut off, or None if it may not."""
    # A Hugging Face tower masks its padding, so that it has no influence.
    config = getattr(getattr(model, "text", None), "config", None)
    return getattr(config, "pad_token_id", None)


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        sign in text for sign in ("out of memory", "allocate memory", "STATUS_ALLOC_FAILED")
    )
