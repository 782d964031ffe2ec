"""Weights score alike, whether they are named or are a file; a file is numbers and nothing else."""

import hashlib
import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="judging needs: pip install 'cahlib[gpu]'")
open_clip = pytest.importorskip("open_clip", reason="judging needs: pip install 'cahlib[gpu]'")

from safetensors.torch import load_file  # noqa: E402

from cahlib.core.config import Judge  # noqa: E402
from cahlib.core.errors import ConfigError  # noqa: E402
from cahlib.image import pixels  # noqa: E402
from cahlib.model.clip import load_clip, require_known_weights  # noqa: E402
from cahlib.model.model_source import find_source  # noqa: E402
from tests.world import models  # noqa: E402

TEXTS = ["a cat", "red", "Überraschung in Köln"]
DATA = [models.picture(number, size=(90, 50)) for number in range(3)]


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Pillow shrinks the pictures, as open_clip has it, and not vector instructions."""
    monkeypatch.setattr(pixels, "vectors", None)


#: How weights want their pictures, as open_clip says it.
PICTURES = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "resize_mode": "squash"}


@pytest.fixture
def tagged(tmp_path, monkeypatch):
    """A model that open_clip knows, with weights by two tags that were trained differently."""
    config = {**models.CONFIG, "vision_cfg": models.VIT}
    models.write(tmp_path, name="tiny-gelu", config=config)
    file = tmp_path / "random.safetensors"
    tags = {
        "openai": {"file": str(file), "hf_hub": "timm/vit.openai/", "quick_gelu": True, **PICTURES},
        "laion": {"file": str(file)},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-gelu", tags)
    config["text_cfg"] = {
        **config["text_cfg"],
        "tokenizer_kwargs": {"bpe_path": str(tmp_path / "bpe.txt.gz")},
    }
    for name, quick in [("tiny-gelu", False), ("tiny-gelu-quickgelu", True)]:
        (tmp_path / f"{name}.json").write_text(json.dumps({**config, "quick_gelu": quick}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    return tags


def scores(pretrained, model="tiny-gelu"):
    loaded = load_clip(Judge(model=model, pretrained=str(pretrained), threshold=0.3))
    return loaded.embed([loaded.prepare(each) for each in DATA], TEXTS)


def test_the_weights_say_which_gelu_they_were_trained_with(tmp_path, tagged):
    del tagged["openai"]["mean"], tagged["openai"]["std"], tagged["openai"]["resize_mode"]
    for tag, quick in [("openai", True), ("laion", False)]:
        parts = models.plain(tmp_path, name="tiny-gelu", quick_gelu=quick)
        expected = models.plain_embeddings(parts, DATA, TEXTS)
        np.testing.assert_allclose(scores(tag), expected, atol=1e-6)
    assert load_clip(Judge(model="tiny-gelu", pretrained=tag, threshold=0.3)).name == (
        f"tiny-gelu/{tag}"
    )


def saved(file, form, state):
    """A file of weights in one of the forms that people have."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = load_file(state)
    if form == "safetensors":
        shutil.copy(state, file)
    if form == "pt":
        torch.save(content, file)
    elif form == "training":
        prefixed = {f"module.{name}": value for name, value in content.items()}
        torch.save({"epoch": 32, "name": "run", "state_dict": prefixed}, file)
    return file


@pytest.mark.parametrize("tag", ["openai", "laion"])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("{tag}.safetensors", "safetensors"),
        ("ViT-tiny_{tag}.v2.pt", "pt"),
        ("{tag}.pt", "training"),
        ("0123/{tag}_model.safetensors", "safetensors"),
        ("models--timm--vit.{tag}/snapshots/77/open_clip_model.safetensors", "safetensors"),
        ("from-a-url.pt", "pt"),
        ("by-its-digest.pt", "pt"),
        ("by-its-digest.safetensors", "safetensors"),
    ],
)
def test_a_file_of_known_weights_scores_as_they_do(tmp_path, tagged, tag, name, form):
    tagged["laion"]["hf_hub"] = "timm/vit.laion/"
    file = saved(tmp_path / name.format(tag=tag), form, tmp_path / "random.safetensors")
    if "digest" in name:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        forms = {"pt": f"/{digest}/tiny.pt", "safetensors": f"/tiny-{digest[:8]}.pt"}
        tagged[tag]["url"] = "https://host" + forms[form]
    if "url" in name:
        tagged[tag]["url"] = f"https://host/{name}"
    expected = scores(tag)
    np.testing.assert_allclose(scores(file), expected, atol=1e-6)
    other = scores("laion" if tag == "openai" else "openai")
    assert max(np.abs(a - b).max() for a, b in zip(expected, other, strict=True)) > 1e-3


def test_a_file_that_does_not_tell_is_asked_about_where_it_matters(tmp_path, tagged):
    file = tmp_path / "random.safetensors"
    with pytest.raises(ConfigError, match=r"random\.safetensors could be any .*openai"):
        scores(file)
    with pytest.raises(ConfigError, match="could be any of the weights"):
        require_known_weights(
            find_source(Judge(model="tiny-gelu", pretrained=str(file), threshold=1))
        )
    quick = scores(file, model="tiny-gelu-quickgelu")
    np.testing.assert_allclose(quick, scores("openai"), atol=1e-6)
    del tagged["laion"]
    np.testing.assert_allclose(scores(file), quick, atol=1e-6)


def test_weights_of_the_other_activation_are_refused(tmp_path, tagged):
    file = shutil.copy(tmp_path / "random.safetensors", tmp_path / "laion.safetensors")
    with pytest.raises(ConfigError, match="holds laion, trained with GELU; its model is tiny-gelu"):
        scores(file, model="tiny-gelu-quickgelu")


def folder_texts(folder):
    return load_clip(Judge(model=str(folder), threshold=0.3)).embed_texts(TEXTS)


def test_a_folder_describes_its_model_but_for_what_its_weights_are_known_for(tmp_path, tagged):
    (tmp_path / "tiny-gelu-quickgelu.json").unlink()
    np.testing.assert_allclose(folder_texts(tmp_path), scores("laion")[1], atol=1e-6)
    (tmp_path / "random.safetensors").rename(tmp_path / "openai.safetensors")
    tagged["openai"]["file"] = str(tmp_path / "openai.safetensors")
    np.testing.assert_allclose(folder_texts(tmp_path), scores("openai")[1], atol=1e-6)


class Spy:
    """Notes that it was unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["openai", "other"])
def test_nothing_in_a_file_of_weights_is_executed(tmp_path, tagged, name):
    file, touched = tmp_path / f"{name}.pt", tmp_path / "touched"
    torch.save({"state_dict": load_file(tmp_path / "random.safetensors"), "x": Spy(touched)}, file)
    tagged.pop("openai" if name == "other" else "laion")
    with pytest.raises(ConfigError, match="hold more than numbers"):
        scores(file)
    with zipfile.ZipFile(file, "w") as program:
        for part in ("constants.pkl", "data.pkl", "code/__torch__.py"):
            program.writestr(f"openai/{part}", pickle.dumps(Spy(touched)))
    instead = "pretrained=openai" if name == "openai" else "save its state dict"
    with pytest.raises(ConfigError, match=f"is a TorchScript program, not weights; .*{instead}"):
        scores(file)
    assert not touched.exists()
