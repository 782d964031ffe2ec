"""Scoring on CUDA tensors without a GPU: torch's fake ones have shapes, types and devices alone.

An operation that mixes devices fails on them as on a GPU. Autocast is off where there is no GPU, so
half precision is tried with weights that have it.
"""

import copy

import pytest

torch = pytest.importorskip("torch", reason="judging needs: pip install 'cahlib[gpu]'")
open_clip = pytest.importorskip("open_clip", reason="judging needs: pip install 'cahlib[gpu]'")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from cahlib.model.device_model import DeviceModel  # noqa: E402
from tests.world import models  # noqa: E402

COUNT = 3
GPU = torch.device("cuda:0")


@pytest.fixture
def fake():
    with FakeTensorMode(), torch.no_grad():
        yield


def on_gpu(vision, dtype=torch.float32):
    """A small model whose weights are on the GPU already: fake ones cannot be moved."""
    parts = copy.deepcopy(models.CONFIG) | {"vision_cfg": vision}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with GPU:
            model = open_clip.CLIP(**parts)
    finally:
        torch.set_default_dtype(before)
    model.to = lambda *device, **layout: model
    model.visual.preprocess_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.3, 0.4)}
    return DeviceModel(model, str(GPU))


def inputs(side):
    """Bytes and tokens as they arrive there."""
    pixels = torch.empty((COUNT, side, side, 3), dtype=torch.uint8, device=GPU)
    return pixels, torch.empty((COUNT, 16), dtype=torch.int64, device=GPU)


@pytest.mark.parametrize(
    ("vision", "dtype"),
    [
        (models.VIT, torch.float32),
        (models.VIT, torch.float16),
        (models.CONFIG["vision_cfg"], torch.float16),
    ],
    ids=["ViT", "ViT, half", "ResNet, half"],
)
def test_all_of_it_is_computed_on_the_gpu(fake, vision, dtype):
    model, (pixels, tokens) = on_gpu(vision, dtype), inputs(vision["image_size"])
    images = model.normalize(pixels)
    assert (images.device, images.dtype, images.shape[:2]) == (GPU, torch.float32, (COUNT, 3))
    assert images.is_contiguous(memory_format=torch.channels_last)
    found = model.encode((images.to(dtype), [tokens, tokens[:1]]), torch.float32)
    assert (found.device, found.dtype, found.shape) == (GPU, torch.float32, (2 * COUNT + 1, 32))


def test_what_stays_on_the_cpu_is_noticed(fake):
    model, (pixels, tokens) = on_gpu(models.VIT), inputs(32)
    for mixed in (
        lambda: model.encode((None, [tokens.to("cpu")]), torch.float32),
        lambda: model.normalize(pixels.to("cpu")),
    ):
        with pytest.raises(RuntimeError, match="(?i)device"):
            mixed()
