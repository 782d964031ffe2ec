"""Examines the tiny CLIP: ``python -m cahlib.demo.evaluate [FOLDER]``.

Nothing that it is asked here was drawn by a vendor it learned from. The scenes are in the package;
with the FOLDER of the npm packages it is also asked about every drawing of the held-out vendor.
Similarities are cosines through open_clip's public interface, as any run computes them.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

from cahlib.demo import MODEL, NAME, THRESHOLD, captions, emoji
from cahlib.demo.world import scenes


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Measures of how well matched pairs are told from others."""

    auc: float  #: chance that a matched pair is more similar than a mismatched one
    top1: float  #: chance that a picture finds its caption among 100
    kept: float  #: share of the matched pairs at or above the threshold
    passed: float  #: share of the mismatched pairs at or above it


def main(folder: Path | None = None) -> None:
    model = Model()
    shown = scenes()
    names = [each.name for each in shown]
    images = model.images([Image.open(io.BytesIO(each.data)) for each in shown])
    _print("scenes", images @ model.texts(names).T)
    _print("scenes, web captions", images @ model.texts(captions.web(names)).T)
    if folder:
        data = list(emoji.concepts(folder))
        images = model.images([_on_white(each.drawings[emoji.HELD_OUT]) for each in data])
        _print("all drawings", images @ model.texts([each.label for each in data]).T)


class Model:
    """The tiny CLIP, loaded as any local open_clip model."""

    def __init__(self, folder: Path = MODEL) -> None:
        open_clip.add_model_config(folder / f"{NAME}.json")
        self.model, _, self.transform = open_clip.create_model_and_transforms(
            NAME, pretrained=str(folder / f"{NAME}.safetensors")
        )
        self.tokenizer = open_clip.get_tokenizer(NAME, bpe_path=str(folder / "bpe.txt.gz"))
        self.model.eval()

    def images(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embeddings of length 1, shape (pictures, 128)."""
        with torch.inference_mode():
            batch = torch.stack([self.transform(each.convert("RGB")) for each in pictures])
            found: NDArray[np.float32] = self.model.encode_image(batch, normalize=True).numpy()
        return found

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings of length 1, shape (texts, 128)."""
        with torch.inference_mode():
            batch = self.tokenizer(list(texts))
            found: NDArray[np.float32] = self.model.encode_text(batch, normalize=True).numpy()
        return found


def figures(similarities: NDArray[Any]) -> Figures:
    """Exact figures of a square matrix of cosines whose diagonal holds the matched pairs."""
    n = len(similarities)
    own = similarities.diagonal()
    others = np.sort(similarities[~np.eye(n, dtype=bool)])
    better = (similarities > own[:, None]).sum(1)
    return Figures(
        auc=float(np.searchsorted(others, own).mean() / len(others)),
        top1=sum(math.comb(n - 1 - int(k), 99) for k in better) / n / math.comb(n - 1, 99),
        kept=float((own >= THRESHOLD).mean()),
        passed=float((others >= THRESHOLD).mean()),
    )


def _on_white(svg: str) -> Image.Image:
    ground = Image.new("RGBA", (256, 256), "white")
    ground.alpha_composite(emoji.render(svg, 224), (16, 16))
    return ground


def _print(name: str, similarities: NDArray[Any]) -> None:
    found = figures(similarities)
    print(
        f"{name} ({len(similarities)}): AUC {found.auc:.4f}, top-1 of 100 {found.top1:.3f}; "
        f"at {THRESHOLD} {found.kept:.1%} of the matched pairs and {found.passed:.2%} of the others"
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        emoji.command(main)
    else:
        main()
