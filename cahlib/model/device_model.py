"""A model on one device: inputs are moved there, and embeddings computed.

The embeddings are those of open_clip's own model, up to rounding. Nothing here knows where models
come from.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cahlib.model.cpu import (
    PackedTexts,
    encode_packed,
    fastest_cpu_dtype,
    optimize_for_cpu,
    pack_texts,
    packable_tower,
)
from cahlib.model.frameworks import torch
from cahlib.model.inputs import PixelArray, TokenGroup

#: Embeddings of length 1: (how many, width of the model).
Vectors: TypeAlias = NDArray[np.float32]
#: Images, if there are any, and groups of texts, on a device.
ModelInput: TypeAlias = tuple[torch.Tensor | None, list[torch.Tensor | PackedTexts]]


class DeviceModel:
    """A model on one device."""

    def __init__(self, model: Any, device: str, *, dtype: torch.dtype | None = None) -> None:
        """``dtype`` is that of multiplications, by default the fastest that is precise enough."""
        self.device = device
        self.limit = sys.maxsize  #: most images at once that the memory is known to hold
        self.clock = _Clock()
        self._cuda, on_cpu = device.startswith("cuda"), device == "cpu"
        fastest = fastest_cpu_dtype(model) if on_cpu else torch.float32
        self._dtype = dtype or (torch.float16 if self._cuda else fastest)
        # Convolutions on tensor cores want channels last; a ViT does not mind.
        self._layout = torch.channels_last if self._cuda else torch.contiguous_format
        self._model = model.to(device, memory_format=self._layout).eval()
        if on_cpu:
            optimize_for_cpu(model, self._dtype)
        self._tower = packable_tower(model) if on_cpu else None
        config = model.visual.preprocess_cfg
        self._mean, self._std = (
            torch.tensor(config[name], device=device).view(1, 3, 1, 1) for name in ("mean", "std")
        )

    def embed(self, pixels: Sequence[PixelArray], groups: Sequence[TokenGroup]) -> Vectors:
        """Return the embeddings of the images, then those of the groups of tokens, in float32."""
        with self.clock, torch.inference_mode():
            inputs = self.send(pixels, groups)
            both = self.compute(inputs, self._dtype)
            # float16 is eight times as precise as bfloat16, and as fast, but it can overflow.
            if self._dtype == torch.float16 and not np.isfinite(both).all():
                both = self.compute(inputs, torch.float32)
            return both

    def send(self, pixels: Sequence[PixelArray], groups: Sequence[TokenGroup]) -> ModelInput:
        """Move the model's input to its device."""
        images = self._images(pixels) if len(pixels) else None
        return images, [self._texts(tokens) for tokens in groups]

    def compute(self, inputs: ModelInput, dtype: torch.dtype) -> Vectors:
        """Return the embeddings of the input, images first."""
        found: Vectors = self.encode(inputs, dtype).cpu().numpy()
        return found

    def encode(self, inputs: ModelInput, dtype: torch.dtype) -> torch.Tensor:
        """Return what `compute` does, on the device."""
        images, texts = inputs
        kind = torch.device(self.device).type
        with torch.autocast(kind, dtype) if dtype == torch.float16 else nullcontext():
            found = [] if images is None else [self._model.encode_image(images)]
            found += [
                encode_packed(self._tower, each)
                if isinstance(each, PackedTexts)
                else self._model.encode_text(each)
                for each in texts
            ]
        vectors = torch.cat([each.float() for each in found])
        return torch.nn.functional.normalize(vectors, dim=-1)

    def shrink(self, limit: int) -> None:
        """Limit the number of images at once from now on."""
        self.limit = min(self.limit, limit)
        if self._cuda:
            torch.cuda.empty_cache()

    def _images(self, pixels: Sequence[PixelArray]) -> torch.Tensor:
        """Send bytes to the device, which converts them to floats."""
        raw = torch.empty((len(pixels), *pixels[0].shape), dtype=torch.uint8, pin_memory=self._cuda)
        np.stack(pixels, out=raw.numpy())
        return self.normalize(self._move(raw))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return bytes that are on the device, (images, height, width, 3), as the model's input."""
        images = pixels.permute(0, 3, 1, 2)
        floats = images.to(torch.float32, memory_format=self._layout).div_(255)
        return floats.sub_(self._mean).div_(self._std)

    def _texts(self, tokens: TokenGroup) -> torch.Tensor | PackedTexts:
        if self._tower is None:
            return self._move(torch.from_numpy(tokens))
        return pack_texts(tokens)  # on the CPU already

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        # A copy from memory that is not pinned waits until the GPU has finished all its work.
        pinned = tensor.pin_memory() if self._cuda else tensor
        return pinned.to(self.device, non_blocking=self._cuda)


class _Clock:
    """The time in which at least one thread was inside its ``with``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside, self._since, self._before = 0, 0.0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = time.monotonic()
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before += time.monotonic() - self._since

    def seconds(self) -> float:
        with self._lock:
            return self._before + (time.monotonic() - self._since if self._inside else 0)
