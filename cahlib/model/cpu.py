"""Faster computation on CPUs: packed texts, fused QuickGELU, bfloat16 layers, a shorter last block.

All of it was measured on CPUs with ViT-B/32 and is done on CPUs alone. The results are those of
open_clip's own model up to rounding.

Not kept, since on a CPU with AMX none of them was faster (24 ms an image): torch.compile (37 ms,
after 77 s of compiling), TorchScript traced and frozen, and the same with the oneDNN graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cahlib.model.frameworks import QuickGELU, ResidualAttentionBlock, torch
from cahlib.model.inputs import TokenGroup

#: The factor in QuickGELU: x sigmoid(1.702 x).
_QUICK = 1.702

#: From this width of the embeddings on, rounding errors cancel out, and bfloat16 is precise enough.
_LARGE = 512

linear = torch.nn.functional.linear
scaled_dot_product_attention = torch.nn.functional.scaled_dot_product_attention


def optimize_for_cpu(model: Any, dtype: torch.dtype) -> None:
    """Modify a model on a CPU in place, so that it computes the same in less time."""
    fuse_quickgelu(model)
    if dtype == torch.bfloat16:
        convert_to_bfloat16(model.visual)
    keep_cls_only_in_last_block(model.visual)


def fastest_cpu_dtype(model: Any) -> torch.dtype:
    """Return bfloat16 if this CPU multiplies it in hardware and the model is large."""
    large = getattr(model.visual, "output_dim", 0) >= _LARGE  # timm's towers do not say
    # An older torch has no such function; it computes in float32 then.
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    quick = able.get("avx512_bf16") or able.get("amx_bf16")
    return torch.bfloat16 if large and quick else torch.float32


def fuse_quickgelu(model: Any) -> None:
    """Make each QuickGELU a SiLU between scaled weights: one step instead of three.

    x sigmoid(a x) = silu(a x) / a; the three took a third of the time.
    """
    for block in model.modules():
        if isinstance(getattr(block, "gelu", None), QuickGELU):
            with torch.no_grad():
                block.c_fc.weight *= _QUICK
                block.c_fc.bias *= _QUICK
                block.c_proj.weight /= _QUICK
            block.gelu = torch.nn.SiLU(inplace=True)


def convert_to_bfloat16(tower: Any) -> None:
    """Multiply an image tower's matrices in bfloat16; what the layers add up stays float32.

    ViT-B/32 takes images nearly twice as fast, and similarities differ by less than 0.001. Texts
    would add most of the difference: on a CPU with AMX, 32 of them take 0.27 instead of 0.51 CPU
    seconds beside 1.14 for their images, but similarities then differ by up to 0.0012. With the
    MLPs alone in bfloat16 it is 0.0007, for 6 % of a batch's time.
    """
    for block in tower.modules():
        if isinstance(block, ResidualAttentionBlock):
            block.attn = _Attention(block.attn)
            block.mlp.bfloat16().register_forward_pre_hook(lambda _, given: given[0].bfloat16())


class _Attention(torch.nn.Module):
    """An image tower's attention in bfloat16, for which torch's own module is slow."""

    def __init__(self, attn: torch.nn.MultiheadAttention) -> None:
        super().__init__()
        attn.bfloat16()
        self._head, self._out = attn.head_dim, attn.out_proj
        self._in, self._bias = attn.in_proj_weight, attn.in_proj_bias

    def forward(
        self, query: torch.Tensor, x: torch.Tensor, *_: torch.Tensor, **__: object
    ) -> tuple[torch.Tensor, None]:
        """Attend from ``query`` to ``x``, (images, places, width); return no weights."""
        width = x.shape[2]
        queries = self._project(query, slice(width))
        keys, values = self._project(x, slice(width, None)).chunk(2, dim=1)
        mixed = scaled_dot_product_attention(queries, keys, values)
        return self._out(mixed.transpose(1, 2).flatten(2)), None

    def _project(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        """Apply some rows of the weights: (images, heads, places, width of a head)."""
        made = linear(x.bfloat16(), self._in[rows], self._bias[rows])
        return made.view(*x.shape[:2], -1, self._head).transpose(1, 2)


def keep_cls_only_in_last_block(tower: Any) -> None:
    """Compute only the first place in a ViT's last block, if no other is pooled.

    Keys and values are still those of all places: a sixth of the block. ViT-B/32 gains 7 %.
    """
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", [None])
    first = getattr(tower, "pool_type", "") == "tok" and getattr(tower, "attn_pool", 0) is None
    if first and type(blocks[-1]) is ResidualAttentionBlock and tower.transformer.batch_first:
        blocks[-1] = _ClsOnlyBlock(blocks[-1])


class _ClsOnlyBlock(torch.nn.Module):
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


class PackedTexts(NamedTuple):
    """Texts one after the other, each up to its end, without padding.

    Multiplications, nearly all of the work, see one row of tokens; attention alone sees each text
    by itself, in a grid (as in https://github.com/bytedance/effective_transformer). Of 32 texts,
    padded to the longest of 16, 1,118 tokens were computed where 436 count; packed, ViT-B/32 reads
    them in 0.65 instead of 1.45 s.
    """

    tokens: torch.Tensor  #: (tokens of all texts,)
    places: torch.Tensor  #: (tokens of all texts,): their positions in a grid (texts, width)
    ends: torch.Tensor  #: (texts,): where each text ends in the row
    width: int  #: tokens of the longest text


def packable_tower(model: Any) -> Any:
    """Return the text tower if it has CLIP's blocks and pools a text's end; else None.

    What follows the end does not influence the embedding then.
    """
    found = getattr(model, "text", model)
    pool = getattr(found, "text_pool_type", getattr(found, "pool_type", None))
    causal = getattr(found, "attn_mask", None) is not None
    appended = getattr(found, "cls_emb", None) is not None or getattr(found, "use_pad_mask", False)
    blocks = getattr(getattr(found, "transformer", None), "resblocks", ())
    plain = bool(blocks) and all(type(block) is ResidualAttentionBlock for block in blocks)
    return found if plain and causal and pool == "argmax" and not appended else None


def pack_texts(tokens: TokenGroup) -> PackedTexts:
    """Pack texts for such a tower: (texts, tokens)."""
    ends = tokens.argmax(axis=1)  # a text's end has the highest number of all tokens
    width = int(ends.max()) + 1
    inside = np.arange(width) <= ends[:, None]
    return PackedTexts(
        tokens=torch.from_numpy(tokens[:, :width][inside]),
        places=torch.from_numpy(np.flatnonzero(inside)),
        ends=torch.from_numpy((ends + 1).cumsum() - 1),
        width=width,
    )


def encode_packed(tower: Any, texts: PackedTexts) -> Any:
    """Return the tower's embeddings of the texts: (texts, width of the model)."""
    x = tower.token_embedding(texts.tokens) + tower.positional_embedding[texts.places % texts.width]
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        x = _add_mlp(block, x, _attend(block, x, texts))
    # of the last block, only the ends are pooled
    x = _add_mlp(last, x[texts.ends], _attend(last, x, texts)[texts.ends])
    x = tower.ln_final(x)
    project = tower.text_projection
    if project is None:
        return x
    return project(x) if isinstance(project, torch.nn.Linear) else x @ project


def _attend(block: ResidualAttentionBlock, x: torch.Tensor, texts: PackedTexts) -> torch.Tensor:
    """Let each token attend to its text up to itself."""
    attn, width = block.attn, x.shape[1]
    made = linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    count = len(texts.ends)
    grid = made.new_zeros(count * texts.width, 3 * width)
    grid[texts.places] = made
    grid = grid.view(count, texts.width, 3, attn.num_heads, attn.head_dim)
    queries, keys, values = grid.permute(2, 0, 3, 1, 4)
    seen = scaled_dot_product_attention(queries, keys, values, is_causal=True)
    return seen.transpose(1, 2).reshape(-1, width)[texts.places]


def _add_mlp(block: ResidualAttentionBlock, x: torch.Tensor, mixed: torch.Tensor) -> Any:
    """Apply the rest of a block, which treats each token by itself."""
    x = x + block.ls_1(block.attn.out_proj(mixed))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
