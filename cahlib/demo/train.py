"""Makes the tiny CLIP: ``python -m cahlib.demo.train [FOLDER]``.

A real open_clip model (ModifiedResNet and text transformer, 2.4 million weights) that is small
enough to lie in the package. It learns from emoji drawings of five vendors on synthetic
backgrounds, in fixed steps with a fixed seed, and is written to ``cahlib/demo/model``. At the end
`cahlib.demo.evaluate` examines it on a sixth vendor's drawings.

It can say whether a drawing of a common thing belongs to an English caption that names it. It
has never seen a photo, and it knows nothing about safety, style or quality.

Needs what `cahlib.demo.emoji` needs; FOLDER keeps the npm packages and the last checkpoint, so a
run that was stopped goes on where it was. 4,000 steps are about 70 CPU-minutes.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from safetensors.torch import save_file
from torch import Tensor

from cahlib.demo import MODEL, NAME, augment, captions, emoji, evaluate

SIDE = 64
CONTEXT = 16
COMMON_MERGES = 4000
STEPS = 4000
BATCH = 256
TRAINING_SEED = 400
RATE = 2e-3


def main(folder: Path) -> None:
    data = list(emoji.concepts(folder))
    tokenizer = write_tokenizer([each.label for each in data])
    torch.manual_seed(TRAINING_SEED)
    trainer = Trainer(Drawings(data), Texts(data, tokenizer), CLIP(**write_config(tokenizer)))
    trainer.resume(folder / "checkpoint.pt")
    while trainer.step < STEPS:
        loss = trainer.train_one()
        if trainer.step % 100 == 0:
            print(f"step {trainer.step} of {STEPS}, loss {loss:.3f}", flush=True)
        if trainer.step % 500 == 0:
            trainer.save(folder / "checkpoint.pt")
    write_weights(trainer.model)
    evaluate.main(folder)


def write_tokenizer(labels: Sequence[str]) -> SimpleTokenizer:
    """Cut the stock BPE down to its commonest merges and those that our words need."""
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        header, *merges = file.read().split("\n")[: 49152 - 256 - 2 + 1]
    stock = SimpleTokenizer()
    made_of = {merge.replace(" ", ""): merge.split() for merge in merges}
    wanted = [
        stock.decoder[token] for token in stock.encode(" ".join([*labels, *captions.words()]))
    ]
    wanted += list(made_of)[:COMMON_MERGES]
    needed = set()
    while wanted:
        token = wanted.pop()
        if token in made_of and token not in needed:
            needed.add(token)
            wanted += made_of[token]
    kept = [merge for merge in merges if merge.replace(" ", "") in needed]
    path = MODEL / "bpe.txt.gz"
    # mtime 0: the same words give the same file
    path.write_bytes(gzip.compress("\n".join([header, *kept]).encode(), mtime=0))
    return SimpleTokenizer(bpe_path=str(path), context_length=CONTEXT)


def write_config(tokenizer: SimpleTokenizer) -> dict[str, Any]:
    """Write open_clip's description of the model."""
    text = {"context_length": CONTEXT, "vocab_size": tokenizer.vocab_size}
    config = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIDE, "layers": [1, 2, 2, 1], "width": 16, "patch_size": None},
        "text_cfg": {**text, "width": 128, "heads": 4, "layers": 2},
    }
    (MODEL / f"{NAME}.json").write_text(json.dumps(config, indent=2) + "\n")
    return config


def write_weights(model: CLIP) -> None:
    """Write the weights as float16."""
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, MODEL / f"{NAME}.safetensors")


class Texts:
    """Captions of the concepts, as tokens."""

    def __init__(self, data: Sequence[emoji.Concept], tokenizer: SimpleTokenizer) -> None:
        self.labels = [each.label for each in data]
        self.tokenizer = tokenizer
        named = set(" ".join(self.labels).lower().split())
        whole = (token[:-4] for token in tokenizer.encoder if token.endswith("</w>"))
        words = (word for word in whole if word.isascii() and word.isalpha() and len(word) > 1)
        self.noise = [word for word in words if word not in named]

    def batch(self, concepts: Sequence[int], random: Random) -> Tensor:
        """Tokens, int64, shape (concepts, CONTEXT)."""
        texts = [captions.training_caption(self.labels[i], self.noise, random) for i in concepts]
        tokens: Tensor = self.tokenizer(texts)
        return tokens


class Drawings:
    """The training vendors' drawings, and pictures made of them."""

    #: in a mirror these would mean something else
    sided = re.compile("left|right|clock|thirty|button|keycap|arrow|back|mark|Japanese|sign")

    def __init__(self, data: Sequence[emoji.Concept]) -> None:
        rows: list[np.ndarray[Any, Any]] = []
        self.of: list[list[int]] = []
        self.mirrored = torch.tensor([not self.sided.search(each.label) for each in data])
        for concept in data:
            own = [svg for vendor, svg in concept.drawings.items() if vendor != emoji.HELD_OUT]
            self.of.append(list(range(len(rows), len(rows) + len(own))))
            rows += [np.array(emoji.render(svg, SIDE)) for svg in own]
        self.rgba = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()

    def batch(self, concepts: Sequence[int], random: Random) -> Tensor:
        """One augmented picture of each concept, normalised for the model: (n, 3, SIDE, SIDE)."""
        chosen = [random.choice(self.of[i]) for i in concepts]
        drawing = self.rgba[chosen].float() / 255
        colour, alpha = drawing[:, :3], drawing[:, 3:]
        mirror = self.mirrored[list(concepts)] & (torch.rand(len(concepts)) < 0.3)
        moved = augment.move(torch.cat([colour * alpha, alpha], 1), mirror)
        ground = augment.grounds(len(concepts), SIDE)
        pictures = moved[:, :3] + ground * (1 - moved[:, 3:])
        return augment.normalise(augment.spoil(pictures, random))


class Trainer:
    """The model, what trains it, and how far it has come."""

    def __init__(self, drawings: Drawings, texts: Texts, model: CLIP) -> None:
        self.drawings, self.texts = drawings, texts
        self.model = model.to(memory_format=torch.channels_last)
        #: one point on the sphere for each concept, shared by pictures and captions
        self.prototypes = torch.nn.Parameter(torch.randn(len(texts.labels), 128))
        parameters = [*self.model.parameters(), self.prototypes]
        self.optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.1)
        self.random = Random(TRAINING_SEED)
        self.step = 0

    def train_one(self) -> float:
        """One step; gives the loss."""
        concepts = self.random.sample(range(len(self.prototypes)), BATCH)
        pictures = self.drawings.batch(concepts, self.random)
        tokens = self.texts.batch(concepts, self.random)
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * _schedule(self.step)
        self.optimizer.zero_grad()
        loss = self._loss(pictures, tokens, torch.tensor(concepts))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(50))
        self.step += 1
        return loss.item()

    def _loss(self, pictures: Tensor, tokens: Tensor, concepts: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image = self.model.encode_image(pictures.contiguous(memory_format=torch.channels_last))
            text = self.model.encode_text(tokens)
        image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
        scale = self.model.logit_scale.exp()
        own = torch.arange(len(concepts))
        contrast = scale * image @ text.T
        prototypes = F.normalize(self.prototypes, dim=1)
        return (
            F.cross_entropy(contrast, own) / 2
            + F.cross_entropy(contrast.T, own) / 2
            + F.cross_entropy(scale * image @ prototypes.T, concepts)
            + F.cross_entropy(scale * text @ prototypes.T, concepts)
        )

    def save(self, path: Path) -> None:
        parts = (self.model, self.optimizer)
        torch.save(
            {
                "step": self.step,
                "random": self.random.getstate(),
                "torch": torch.get_rng_state(),
                "prototypes": self.prototypes.data,
                "parts": [each.state_dict() for each in parts],
            },
            path.with_suffix(".new"),
        )
        path.with_suffix(".new").replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not path.exists():
            return
        saved = torch.load(path, weights_only=False)
        for part, state in zip((self.model, self.optimizer), saved["parts"], strict=True):
            part.load_state_dict(state)
        self.prototypes.data.copy_(saved["prototypes"])
        self.random.setstate(saved["random"])
        torch.set_rng_state(saved["torch"])
        self.step = saved["step"]


def _schedule(step: int) -> float:
    """Warm up, then fall along a cosine."""
    return min(step / 300, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))


if __name__ == "__main__":
    emoji.command(main)
