"""Preprocess a model's input: images to pixels, texts to tokens.

Nothing here knows the model or its devices; the steps and the tokenizer are open_clip's.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cahlib.image.pixels import resize_shorter_side
from cahlib.image.thumbs import to_model_colours

#: An image as the model sees it: (height, width, 3).
PixelArray: TypeAlias = NDArray[np.uint8]
#: Texts of about the same length: (texts, tokens).
TokenGroup: TypeAlias = NDArray[np.int64]

#: Words whose tokens are cached; open_clip's own cache has no limit.
_WORDS = 200_000

#: What Pillow raises for damaged files, depending on where they are damaged.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError,
    MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def preprocess(data: bytes, steps: Sequence[Callable[[Any], Any]]) -> PixelArray | None:
    """Decode an image and apply the steps; return None if it cannot be decoded.

    Pillow decodes and resizes without the GIL, so threads speed it up.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
        image = to_model_colours(image, image.info.get("icc_profile"))
        for step in steps:
            image = step(image)
        return np.asarray(image)
    except DECODE_ERRORS:
        return None


def fast_step(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a step of open_clip's, or one that does the same in less time."""
    side, filter = getattr(step, "size", None), getattr(step, "interpolation", None)
    if isinstance(side, int) and str(getattr(filter, "value", "")) == "bicubic":
        return partial(resize_shorter_side, side=side)
    return step


def thumb_side(steps: Sequence[Callable[[Any], Any]]) -> int:
    """Return the side of thumbs that have the pixels to which these steps lead, 0 for others."""
    first, second = (*steps, None, None)[:2]
    if not isinstance(first, partial) or first.func is not resize_shorter_side:
        return 0
    side: int = first.keywords["side"]
    return side if getattr(second, "size", None) in (side, (side, side), [side, side]) else 0


class GroupedTokenizer:
    """Tokenize each distinct text once, in groups of similar length without the padding.

    Most texts are much shorter than a model's context, and a model reads 20 tokens four times as
    fast as 77 (ViT-B/32 on a CPU).
    """

    def __init__(self, tokenizer: Any, *, padding: int | None, size: int) -> None:
        """Take the token that may be cut off, if any, and the size of a group."""
        self._tokenizer, self._padding, self._size = tokenizer, padding, size
        self._specials = dict(getattr(tokenizer, "cache", {}))
        self._lock = threading.Lock()  # the tokenizer's cache is not thread-safe

    def __call__(self, texts: Sequence[str]) -> tuple[list[TokenGroup], NDArray[np.intp]]:
        """Return the groups, and for each text its row in all groups joined."""
        different = list(dict.fromkeys(texts))
        tokens = self._tokenize(different)
        lengths = self._lengths(tokens)
        order = lengths.argsort(kind="stable")
        parts = [order[i : i + self._size] for i in range(0, len(order), self._size)]
        groups = [tokens[part, : lengths[part[-1]]] for part in parts]
        row = {different[place]: row for row, place in enumerate(order)}
        return groups, np.array([row[text] for text in texts])

    def _tokenize(self, texts: list[str]) -> TokenGroup:
        with self._lock:
            tokens = np.asarray(self._tokenizer(texts))
            if len(getattr(self._tokenizer, "cache", ())) > _WORDS:
                self._tokenizer.cache = dict(self._specials)
        return tokens

    def _lengths(self, tokens: TokenGroup) -> NDArray[np.int64]:
        width = tokens.shape[1]
        if self._padding is None:
            return np.full(len(tokens), width)
        ends: NDArray[np.int64] = ((tokens != self._padding) * np.arange(1, width + 1)).max(axis=1)
        return ends
