"""A small CLIP with random weights, in a folder as cahlib takes it, and by plain open_clip."""

import copy
import gzip
import io
import json
import random
from functools import cache
from itertools import islice
from pathlib import Path

from PIL import Image as Picture
from safetensors.torch import save_file

from cahlib.model.frameworks import open_clip, torch

# Two threads would mostly wait for each other, with so small a model on a busy machine.
torch.set_num_threads(1)

#: The merges of its vocabulary: the first ones of open_clip's.
_MERGES = 300

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 512 + _MERGES + 2,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TIMM = {
    "image_size": 32, "timm_model_name": "resnet10t", "timm_model_pretrained": False,
    "timm_pool": "avg", "timm_proj": "linear",
}  # fmt: skip


@cache
def _vocabulary() -> bytes:
    with gzip.open(open_clip.tokenizer.default_bpe()) as every:
        return gzip.compress(b"".join(islice(every, _MERGES + 1)).rstrip(b"\n"))


def write(folder: Path, *, name="tiny", config=CONFIG, seed=0) -> Path:
    """A model's folder; the same seed gives the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(config))
    (folder / "bpe.txt.gz").write_bytes(_vocabulary())
    torch.manual_seed(seed)
    parts = copy.deepcopy(config)
    kind = open_clip.CustomTextCLIP if parts.pop("custom_text", False) else open_clip.CLIP
    state = kind(**parts).state_dict()
    for key, value in state.items():
        if key.endswith("bn3.weight"):  # 0 in a new model, which would hide half of it
            value.fill_(0.5)
    save_file(state, folder / "random.safetensors")
    return folder


def plain(folder: Path, *, name="tiny", quick_gelu=False):
    """open_clip's own model, transform and tokenizer of such a folder, as its manual says."""
    open_clip.add_model_config(folder / f"{name}.json")
    model, _, transform = open_clip.create_model_and_transforms(
        name, pretrained=str(folder / "random.safetensors"), force_quick_gelu=quick_gelu
    )
    tokenizer = open_clip.get_tokenizer(name, bpe_path=str(folder / "bpe.txt.gz"))
    return model.eval(), transform, tokenizer


def plain_embeddings(parts, data, texts):
    """Embeddings of image files and of texts, by open_clip alone, one after the other."""
    model, transform, tokenizer = parts
    with torch.no_grad():
        images = [transform(Picture.open(io.BytesIO(each))).unsqueeze(0) for each in data]
        of_images = torch.cat([model.encode_image(each) for each in images])
        of_texts = torch.cat([model.encode_text(tokenizer([text])) for text in texts])
    return tuple((each / each.norm(dim=-1, keepdim=True)).numpy() for each in (of_images, of_texts))


def picture(number: int, *, mode="RGB", format="PNG", size=(90, 70)) -> bytes:
    """An image file of coloured boxes; the same number gives the same one."""
    chance = random.Random(number)
    drawn = Picture.new("RGBA", size, (chance.randrange(256), 120, 40, 255))
    for _ in range(9):
        x, y = chance.randrange(size[0]), chance.randrange(size[1])
        colour = tuple(chance.randrange(256) for _ in range(4))
        drawn.paste(colour, (x, y, x + chance.randint(3, 50), y + chance.randint(3, 50)))
    out = io.BytesIO()
    drawn.convert("RGB").convert(mode).save(out, format) if mode != "RGBA" else drawn.save(
        out, format
    )
    return out.getvalue()
