"""Models load by every name they can have, and say the same as open_clip alone."""

import io
import json
import logging
import re
import shutil
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

torch = pytest.importorskip("torch", reason="judging needs: pip install 'cahlib[gpu]'")
open_clip = pytest.importorskip("open_clip", reason="judging needs: pip install 'cahlib[gpu]'")

from cahlib.core.config import Judge  # noqa: E402
from cahlib.core.errors import ConfigError, RunError  # noqa: E402
from cahlib.image import pixels  # noqa: E402
from cahlib.image.jpeg import encode_jpeg  # noqa: E402
from cahlib.model import clip  # noqa: E402
from cahlib.model.clip import load_clip  # noqa: E402
from cahlib.model.device_model import DeviceModel  # noqa: E402
from tests.world import models  # noqa: E402
from tests.world.jobs import LIMIT  # noqa: E402

TEXTS = [
    "a cat",
    "the old house by the river, seen from the bridge, in the first light of a cold morning",
    "!",
    "a cat",
    "Überraschung in Köln",
    "red",
    "the <end_of_text> of a text",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tiny(folder):
    return load_clip(Judge(model=str(folder), threshold=0.2))


@pytest.fixture
def exact(monkeypatch):
    """Pillow shrinks the pictures, as open_clip has it, and not vector instructions."""
    monkeypatch.setattr(pixels, "vectors", None)


def of(folder, **settings):
    return load_clip(Judge(model=str(folder), threshold=0.2, **settings))


def pictures():
    """A file of every mode and format, wide, high and small ones among them."""
    kinds = [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG")]
    kinds += [("P", "PNG"), ("1", "PNG"), ("RGB", "WEBP"), ("RGBA", "WEBP")]
    sizes = [(90, 70), (64, 64), (300, 40), (31, 200)]
    return [
        models.picture(number, mode=mode, format=format, size=sizes[number % 4])
        for number, (mode, format) in enumerate(kinds)
    ]


def embed(model, data, texts):
    return model.embed([model.prepare(each) for each in data], texts)


def test_a_thumb_of_the_models_size_spares_the_image(tiny):
    data = models.picture(0, format="JPEG", size=(300, 200))
    grey = {side: encode_jpeg(np.full((side, side, 3), 77, np.uint8), 98) for side in (64, 65)}
    assert tiny.thumb == 64
    assert np.array_equal(tiny.prepare(data, grey[64]), np.full((64, 64, 3), 77))
    for unfit in (grey[65], grey[64][:200], data, b"no picture"):
        assert np.array_equal(tiny.prepare(data, unfit), tiny.prepare(data))


def test_numbers_equal_a_plain_computation(folder, tiny, exact):
    data = pictures()
    texts = (TEXTS * 2)[: len(data)]
    expected = models.plain_embeddings(models.plain(folder), data, texts)
    of_images, of_texts = embed(tiny, data, texts)
    assert of_images.dtype == of_texts.dtype == np.float32
    assert of_images.shape == of_texts.shape == (len(data), tiny.dim)
    np.testing.assert_allclose(of_images, expected[0], atol=1e-6)
    np.testing.assert_allclose(of_texts, expected[1], atol=1e-6)
    similarity = (of_images * of_texts).sum(axis=1)
    np.testing.assert_allclose(similarity, (expected[0] * expected[1]).sum(axis=1), atol=1e-6)


def test_sixteen_bits_of_grey_are_seen_as_eight(tiny):
    grey = np.linspace(0, 255, 90 * 70).astype(np.uint8).reshape(70, 90)
    found = []
    for picture in (Picture.fromarray(grey), Picture.fromarray(grey.astype(np.uint16) * 257)):
        file = io.BytesIO()
        picture.save(file, "PNG")
        found.append(tiny.prepare(file.getvalue()))
    np.testing.assert_array_equal(*found)


@pytest.mark.skipif(pixels.vectors is None, reason="needs cykooz_resizer and a Pillow it knows")
def test_vector_instructions_shrink_pictures_nearly_as_pillow_does(folder, tiny):
    data = pictures()
    texts = (TEXTS * 2)[: len(data)]
    expected, _ = models.plain_embeddings(models.plain(folder), data, texts)
    found, of_texts = embed(tiny, data, texts)
    assert 0 < np.abs(found - expected).max()
    np.testing.assert_allclose(found @ of_texts.T, expected @ of_texts.T, atol=1e-3)


POOLED = [{**models.VIT, "pool_type": "avg"}, {**models.VIT, "attentional_pool": True}]


@pytest.mark.parametrize("tower", [models.VIT, models.TIMM, *POOLED])
def test_other_towers_too(tmp_path, tower, exact):
    config = {**models.CONFIG, "vision_cfg": tower}
    models.write(tmp_path, name="tiny-vit", config=config)
    data = pictures()[: len(TEXTS)]
    expected = models.plain_embeddings(models.plain(tmp_path, name="tiny-vit"), data, TEXTS)
    np.testing.assert_allclose(embed(of(tmp_path), data, TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize(
    "text_cfg", [{"no_causal_mask": True, "pool_type": "last"}, {"embed_cls": True}]
)
def test_a_text_tower_that_minds_its_padding_gets_it(tmp_path, text_cfg):
    config = {**models.CONFIG, "text_cfg": {**models.CONFIG["text_cfg"], **text_cfg}}
    config["custom_text"] = True
    name = f"tiny-{next(iter(text_cfg))}"
    models.write(tmp_path, name=name, config=config)
    expected = models.plain_embeddings(models.plain(tmp_path, name=name), pictures()[:1], TEXTS)
    np.testing.assert_allclose(of(tmp_path).embed_texts(TEXTS), expected[1], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_vits_last_block_only_the_place_that_is_looked_at_is_computed(tmp_path, dtype):
    models.write(tmp_path, name="last", config={**models.CONFIG, "vision_cfg": models.VIT})
    model, *_ = models.plain(tmp_path, name="last")
    shapes = []
    for block in model.visual.transformer.resblocks:
        block.mlp.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[1]))
    pixels = [np.zeros((32, 32, 3), np.uint8)]
    DeviceModel(model, "cpu", dtype=dtype).embed(pixels, [])
    assert shapes == [17, 1]


def test_the_cut_into_batches_does_not_matter(tiny):
    data = pictures()[: len(TEXTS)]
    whole = embed(tiny, data, TEXTS)
    alone = [embed(tiny, [d], [t]) for d, t in zip(data, TEXTS, strict=True)]
    np.testing.assert_allclose(whole[0], np.concatenate([i for i, _ in alone]), atol=1e-6)
    np.testing.assert_allclose(whole[1], np.concatenate([t for _, t in alone]), atol=1e-6)


def with_hook(folder, hook, *, devices=("cpu",), part="visual"):
    """A Clip whose model calls the hook with the inputs of one of its parts."""
    model, transform, tokenizer = models.plain(folder)
    getattr(model, part).register_forward_pre_hook(lambda _, inputs: hook(inputs[0]))
    return clip.Clip("tiny", model, transform=transform, tokenizer=tokenizer, devices=devices)


def test_equal_texts_are_read_once_and_without_padding(folder):
    model, transform, tokenizer = models.plain(folder)
    shapes = []
    for block in model.transformer.resblocks:
        block.mlp.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[0]))
    tiny = clip.Clip("tiny", model, transform=transform, tokenizer=tokenizer, devices=["cpu"])
    shapes.clear()
    texts = ["red"] * 40 + ["a cat", TEXTS[1]] + [f"{n}" for n in range(20)]
    tiny.embed_texts(texts)
    different = sorted(set(texts))
    tokens = int((tokenizer(different) != 0).sum())
    assert shapes == [*[tokens] * (len(model.transformer.resblocks) - 1), len(different)]


def test_a_batch_too_large_for_the_memory_is_divided(folder, tiny):
    sizes = []

    def small(x):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    model = with_hook(folder, small)
    data = pictures()[: len(TEXTS)]
    for _ in range(2):
        np.testing.assert_allclose(embed(model, data, TEXTS), embed(tiny, data, TEXTS), atol=1e-6)
    assert sizes == [7, 3, 3, 1, 3, 3, 1]


def test_no_memory_for_one_image_ends_the_run(folder):
    def none(x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried too much")

    model = with_hook(folder, none)
    with pytest.raises(RunError, match="memory of cpu is too small for one image with tiny"):
        embed(model, pictures()[:4], TEXTS[:4])


def test_another_error_of_the_model_flies(folder):
    def broken(x):
        raise RuntimeError("an illegal instruction was encountered")

    with pytest.raises(RuntimeError, match="illegal instruction"):
        embed(with_hook(folder, broken), pictures()[:2], TEXTS[:2])


def test_what_overflows_in_half_precision_is_computed_again(folder):
    model, transform, tokenizer = models.plain(folder)
    pixels = [clip.preprocess(each, transform.transforms[:-2]) for each in pictures()[:3]]
    tokens = [tokenizer(TEXTS[:3]).numpy()]
    expected = DeviceModel(model, "cpu").embed(pixels, tokens)
    half = DeviceModel(model, "cpu", dtype=torch.float16)
    close = half.embed(pixels, tokens)
    assert 0 < np.abs(close - expected).max() < 1e-2
    model.visual.register_forward_hook(lambda _, inputs, out: out * 1e6)
    np.testing.assert_allclose(half.embed(pixels, tokens), expected, atol=1e-6)


def test_a_large_model_rounds_on_a_cpu_as_little_as_promised():
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False)
    chance = np.random.default_rng(0)
    pixels = list(chance.integers(0, 256, (6, 224, 224, 3), dtype=np.uint8))
    tokens = [chance.integers(1, 49000, (6, 9))]
    with torch.inference_mode():  # before the weights are folded
        normed = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
        mean, std = (model.visual.preprocess_cfg[name] for name in ("mean", "std"))
        normed = (normed - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        images = model.encode_image(normed, normalize=True).numpy()
    exact = DeviceModel(model, "cpu", dtype=torch.float32).embed(pixels, tokens)
    np.testing.assert_allclose(exact[:6], images, atol=1e-6)
    rounded = DeviceModel(model, "cpu", dtype=torch.bfloat16).embed(pixels, tokens)
    assert np.abs(rounded[:6] - exact[:6]).max() > 1e-5
    np.testing.assert_allclose(rounded[:6] @ rounded[6:].T, exact[:6] @ exact[6:].T, atol=1e-3)
    np.testing.assert_allclose(rounded[6:], exact[6:], atol=1e-6)


def test_every_device_works_at_the_same_time(folder, tiny):
    both = threading.Barrier(2, timeout=LIMIT)

    def meet(x):
        both.wait()

    model = with_hook(folder, meet, devices=("cpu", "cpu"))
    assert model.devices == ("cpu", "cpu") and model.slots == 4
    data, found = pictures(), {}

    def work(part):
        found[part] = embed(model, data[part : part + 2], TEXTS[part : part + 2])

    threads = [threading.Thread(target=work, args=(part,)) for part in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in (0, 2):
        expected = embed(tiny, data[part : part + 2], TEXTS[part : part + 2])
        np.testing.assert_allclose(found[part], expected, atol=1e-6)


def test_models_that_load_at_once_silence_nobody_else(folder, monkeypatch, caplog):
    first, second, left, opened = *(threading.Event() for _ in range(3)), clip._open

    def slowly(source):
        logging.warning("open_clip's")
        own, awaited = (second, left) if first.is_set() else (first, second)
        own.set()
        assert awaited.wait(LIMIT)
        return opened(source)

    monkeypatch.setattr(clip, "_open", slowly)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(of, folder)
        assert first.wait(LIMIT)
        other = pool.submit(of, folder)
        assert second.wait(LIMIT)
        logging.warning("meanwhile")
        one.result()
        left.set()
        other.result()
    logging.warning("afterwards")
    assert caplog.messages == ["meanwhile", "afterwards"]


def test_it_knows_how_long_it_worked(folder):
    model = with_hook(folder, lambda x: None)
    began, before = time.monotonic(), model.worked()
    embed(model, pictures()[:3], TEXTS[:3])
    assert 0 < model.worked() - before <= time.monotonic() - began
    assert model.worked() == model.worked()


def test_a_transparent_palette_is_read_without_a_warning(folder, tiny):
    file = io.BytesIO()
    drawn = Picture.open(io.BytesIO(models.picture(1, mode="P")))
    drawn.save(file, "PNG", transparency=bytes(range(0, 250, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # open_clip alone would warn
        expected, _ = models.plain_embeddings(models.plain(folder), [file.getvalue()], ["a"])
    found, _ = embed(tiny, [file.getvalue()], ["a"])
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(st.data())
def test_a_rotten_image_is_pixels_or_nothing(tiny, data):
    file = bytearray(data.draw(st.sampled_from(pictures())))
    for place in data.draw(st.lists(st.integers(0, len(file) - 1), max_size=12)):
        file[place] = data.draw(st.integers(0, 255))
    pixels = tiny.prepare(bytes(file[: data.draw(st.integers(0, len(file)))]))
    assert pixels is None or (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)


def test_the_hubs_form_of_a_folder(folder, tmp_path, tiny):
    config = {
        **models.CONFIG,
        "text_cfg": {
            **models.CONFIG["text_cfg"],
            "tokenizer_kwargs": {"bpe_path": str(folder / "bpe.txt.gz")},
        },
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    shutil.copy(folder / "random.safetensors", tmp_path / "open_clip_model.safetensors")
    model = of(tmp_path)
    np.testing.assert_allclose(model.embed_texts(TEXTS), tiny.embed_texts(TEXTS), atol=1e-6)


def test_weights_for_a_known_model_may_be_a_file(tmp_path):
    of(models.write(tmp_path, name="known"))  # open_clip remembers the name from now on
    judge = Judge(model="known", pretrained=str(tmp_path / "random.safetensors"), threshold=0.3)
    with pytest.raises(ConfigError, match="known/random knows 814 tokens, but its tokenizer 49408"):
        load_clip(judge)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": "ViT-B32"}, "model: 'ViT-B32' is neither a folder nor .* try ViT-B-32"),
        ({"model": "models/mine"}, "model: models/mine is neither a folder nor a name"),
        ({"model": "ViT-B-32"}, "pretrained: ViT-B-32 needs weights; name a file .* openai"),
        (
            {"model": "ViT-B-32", "pretrained": "openia"},
            "pretrained: ViT-B-32 has no weights called 'openia'; name a file .* openai",
        ),
        ({"preset": "laion400m"}, "model: ViT-B-32/openai could not be downloaded .* network"),
        ({"model": "hf-hub:no/such"}, "model: hf-hub:no/such could not be downloaded"),
    ],
)
def test_a_model_that_is_not_there(settings, sentence, monkeypatch):
    # It is read from the environment when the library is imported, which was before this test.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if "model" in settings:
        settings["threshold"] = 0.3
    with pytest.raises(ConfigError, match=sentence):
        load_clip(Judge(**settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(folder):
    with pytest.raises(ConfigError, match="device: torch finds no cuda on this machine"):
        of(folder, device="cuda")


def changed(folder, change):
    """What is wrong with a model's folder after a change."""
    models.write(folder)
    change(folder)
    with pytest.raises(ConfigError) as error:
        of(folder)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "tiny.json").unlink(), "must be one model description"),
        (lambda f: (f / "tiny.json").write_text("{"), "tiny.json is not valid JSON"),
        (lambda f: (f / "random.safetensors").unlink(), "one file of weights .* there is none"),
        (lambda f: (f / "b.pt").write_text(""), "there is b.pt, random.safetensors"),
        (lambda f: (f / "random.safetensors").write_text("no"), "damaged or do not belong"),
        (lambda f: (f / "bpe.txt.gz").unlink(), "its tokenizer 49408; put the bpe.txt.gz"),
        (lambda f: (f / "bpe.txt.gz").write_text("no"), "damaged or do not belong"),
        (
            lambda f: (f / "tiny.json").write_text(json.dumps({**models.CONFIG, "embed_dim": 64})),
            "damaged or do not belong together .*size mismatch|damaged or do not belong",
        ),
        (
            lambda f: (f / "tiny.json").write_text(json.dumps({**models.CONFIG, "vision_cfg": 3})),
            "damaged or do not belong",
        ),
        (
            lambda f: (f / "tiny.json").write_text(
                json.dumps(
                    {**models.CONFIG, "vision_cfg": {"layers": [1, 1, 1, 1], "head_width": 0}}
                )
            ),
            "damaged or do not belong together .*zero",
        ),
    ],
)
def test_a_folder_that_is_no_model(tmp_path, change, sentence):
    assert re.search(sentence, changed(tmp_path, change))


def test_a_folder_brings_its_own_weights(folder):
    with pytest.raises(ConfigError, match="brings its own weights; leave it empty"):
        load_clip(Judge(model=str(folder), pretrained="openai", threshold=0.3))
