"""A model on one device: how images and texts get there, and how they are computed.

What it gives is what open_clip's own model gives, up to rounding. It does not know where models
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

from cahlib.model.cpu import PackedTexts, encode_packed, pack_texts, packable_tower
from cahlib.model.frameworks import QuickGELU, ResidualAttentionBlock, torch
from cahlib.model.inputs import Pixels, TokenGroup

#: Embeddings of length 1: (how many, width of the model).
Vectors: TypeAlias = NDArray[np.float32]
#: Images, if there are any, and groups of texts, on a device.
ModelInput: TypeAlias = tuple[torch.Tensor | None, list[torch.Tensor | PackedTexts]]

#: From this width of the embeddings on, rounding cancels out, and a CPU gains by smaller numbers.
_LARGE = 512

#: The factor in QuickGELU: x sigmoid(1.702 x).
_QUICK = 1.702


class DeviceModel:
    """A model on one device."""

    def __init__(self, model: Any, device: str, *, dtype: torch.dtype | None = None) -> None:
        """``dtype`` of the numbers that are multiplied; by default the fastest that is safe."""
        self.device = device
        self.limit = sys.maxsize  #: most images at once that the memory is known to hold
        self.clock = _Clock()
        self._cuda = device.startswith("cuda")
        self._dtype = dtype or _fastest(model, device)
        # Convolutions on tensor cores want channels last; a ViT does not mind.
        self._layout = torch.channels_last if self._cuda else torch.contiguous_format
        self._model = _folded(model.to(device, memory_format=self._layout).eval())
        if self._dtype == torch.bfloat16:
            _round(model.visual)
        _shorten(model.visual)
        self._tower = packable_tower(model)
        config = model.visual.preprocess_cfg
        self._mean, self._std = (
            torch.tensor(config[name], device=device).view(1, 3, 1, 1) for name in ("mean", "std")
        )

    def embed(self, pixels: Sequence[Pixels], groups: Sequence[TokenGroup]) -> Vectors:
        """The embeddings of the images, then those of the groups of tokens, in float32."""
        with self.clock, torch.inference_mode():
            sent = self.sent(pixels, groups)
            both = self.compute(sent, self._dtype)
            # float16 is eight times as exact as bfloat16, and as fast, but it can overflow.
            if self._dtype == torch.float16 and not np.isfinite(both).all():
                both = self.compute(sent, torch.float32)
            return both

    def sent(self, pixels: Sequence[Pixels], groups: Sequence[TokenGroup]) -> ModelInput:
        """The model's input, on its device."""
        images = self._images(pixels) if len(pixels) else None
        return images, [self._texts(tokens) for tokens in groups]

    def compute(self, sent: ModelInput, dtype: torch.dtype) -> Vectors:
        """The embeddings of what was sent, images first."""
        images, texts = sent
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
        return torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()

    def shrink(self, limit: int) -> None:
        """Take at most so many images at once from now on."""
        self.limit = min(self.limit, limit)
        if self._cuda:
            torch.cuda.empty_cache()

    def _images(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        """The model's input: to the device as bytes, to floats there, as torchvision would."""
        raw = torch.empty((len(pixels), *pixels[0].shape), dtype=torch.uint8, pin_memory=self._cuda)
        np.stack(pixels, out=raw.numpy())
        images = self._there(raw).permute(0, 3, 1, 2)
        floats = images.to(torch.float32, memory_format=self._layout).div_(255)
        return floats.sub_(self._mean).div_(self._std)

    def _texts(self, tokens: TokenGroup) -> torch.Tensor | PackedTexts:
        if self._tower is None:
            return self._there(torch.from_numpy(tokens))
        return pack_texts(tokens).moved(self._there)

    def _there(self, tensor: torch.Tensor) -> torch.Tensor:
        # From other than pinned memory, a copy waits until the GPU has done all it has to do.
        pinned = tensor.pin_memory() if self._cuda else tensor
        return pinned.to(self.device, non_blocking=self._cuda)


def _fastest(model: Any, device: str) -> torch.dtype:
    if device.startswith("cuda"):
        return torch.float16
    large = getattr(model.visual, "output_dim", 0) >= _LARGE  # timm's towers do not say
    # An older torch does not tell; it computes in float32 then.
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    quick = device == "cpu" and (able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.bfloat16 if large and quick else torch.float32


def _round(tower: Any) -> None:
    """Have an image tower's matrices multiplied in bfloat16, on a CPU that is quick at it.

    What the layers add up stays float32. ViT-B/32 takes images nearly twice as fast so, and
    similarities differ by less than 0.001. Texts would gain less and add most of the difference.
    """
    for block in tower.modules():
        if isinstance(block, ResidualAttentionBlock):
            block.attn = _Attention(block.attn)
            block.mlp.bfloat16().register_forward_pre_hook(lambda _, given: given[0].bfloat16())


class _Attention(torch.nn.Module):
    """An image tower's attention in bfloat16, in which torch's own module is a slow one."""

    def __init__(self, attn: torch.nn.MultiheadAttention) -> None:
        super().__init__()
        attn.bfloat16()
        self._head, self._out = attn.head_dim, attn.out_proj
        self._in, self._bias = attn.in_proj_weight, attn.in_proj_bias

    def forward(
        self, asking: torch.Tensor, x: torch.Tensor, *_: torch.Tensor, **__: object
    ) -> tuple[torch.Tensor, None]:
        """What the ``asking`` places see in all, ``x``: (images, places, width), and no weights."""
        width = x.shape[2]
        queries = self._of(asking, slice(width))
        keys, values = self._of(x, slice(width, None)).chunk(2, dim=1)
        mixed = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
        return self._out(mixed.transpose(1, 2).flatten(2)), None

    def _of(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        """What some rows of the weights make of places: (images, heads, places, a head's width)."""
        made = torch.nn.functional.linear(x.bfloat16(), self._in[rows], self._bias[rows])
        return made.view(*x.shape[:2], -1, self._head).transpose(1, 2)


def _shorten(tower: Any) -> None:
    """Have the last block of a ViT compute its first place only, if no other is looked at.

    Keys and values are still those of all places: a sixth of the block. ViT-B/32 gains 7 %.
    """
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", [None])
    first = getattr(tower, "pool_type", "") == "tok" and getattr(tower, "attn_pool", 0) is None
    if first and type(blocks[-1]) is ResidualAttentionBlock and tower.transformer.batch_first:
        blocks[-1] = _Last(blocks[-1])


class _Last(torch.nn.Module):
    """A block of a ViT for the first place alone."""

    def __init__(self, block: ResidualAttentionBlock) -> None:
        super().__init__()
        self._block = block

    def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        """(images, places, width) to (images, 1, width)."""
        block, seen = self._block, self._block.ln_1(x)
        mixed, _ = block.attn(seen[:, :1], seen, seen, need_weights=False)
        x = x[:, :1] + block.ls_1(mixed)
        found: torch.Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
        return found


def _folded(model: Any) -> Any:
    """The model, with each QuickGELU as a SiLU between scaled weights: one step instead of three.

    x sigmoid(a x) = silu(a x) / a; the three took a third of the time on a CPU.
    """
    for block in model.modules():
        if isinstance(getattr(block, "gelu", None), QuickGELU):
            with torch.no_grad():
                block.c_fc.weight *= _QUICK
                block.c_fc.bias *= _QUICK
                block.c_proj.weight /= _QUICK
            block.gelu = torch.nn.SiLU(inplace=True)
    return model


class _Clock:
    """Adds up the time in which at least one thread is inside its ``with``."""

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
