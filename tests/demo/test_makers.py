"""The programs that made the demo's model and pictures still make them, from a few drawings."""

import json
import tarfile
import unicodedata

import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the model needs: pip install 'cahlib[gpu]'")
pytest.importorskip("resvg_py", reason="drawing emoji needs: pip install resvg-py")
from safetensors.torch import load_file  # noqa: E402

from cahlib.demo import MODEL, draw, emoji, evaluate, train, world  # noqa: E402

CONCEPTS = 100  # a caption is found among so many
FIRST = 0x1F400  # of a block without gaps that is of animals and things


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The npm packages as they are laid out, with a coloured disc for each thing."""
    folder = tmp_path_factory.mktemp("npm")
    codes = [f"{FIRST + n:x}" for n in range(CONCEPTS)]
    names = [unicodedata.name(chr(int(code, 16))).lower() for code in codes]
    for vendor in (*emoji.TRAINING, emoji.HELD_OUT):
        package = folder / "node_modules" / "@iconify-json" / vendor
        package.mkdir(parents=True)
        icons = {
            f"icon-{n}": {
                "body": f'<circle cx="8" cy="8" r="7" fill="#{n * 99991 % 0xFFFFFF:06x}"/>'
            }
            for n in range(CONCEPTS)
        }
        # some vendors name by code point, some by name, which may be an alias
        by_code = {code: f"icon-{n}" for n, code in enumerate(codes)}
        by_name = {name.replace(" ", "-"): {"parent": f"icon-{n}"} for n, name in enumerate(names)}
        named = vendor == "fxemoji"
        icons_file = {"icons": icons, "aliases": by_name if named else {}}
        (package / "icons.json").write_text(json.dumps(icons_file))
        (package / "chars.json").write_text(json.dumps({} if named else by_code))
    data = [
        {
            "label": name,
            "hexcode": code.upper(),
            "emoji": chr(int(code, 16)),
            "group": 3,
            "order": n,
        }
        for n, (code, name) in enumerate(zip(codes, names, strict=True))
    ]
    data += [{"label": "flag: Chad", "hexcode": codes[0], "emoji": "?", "group": 9, "order": 999}]
    about = folder / "node_modules" / "emojibase-data" / "en"
    about.mkdir(parents=True)
    (about / "data.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Few steps, and what is made lies where it does no harm."""
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(train, "MODEL", tmp_path / "model")
    for name, value in (("STEPS", 2), ("BATCH", 8), ("COMMON_MERGES", 100)):
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(draw, "SCENES", tmp_path / "scenes.tar")
    monkeypatch.setattr(draw, "COUNT", 24)
    return tmp_path


def test_each_thing_is_found_with_the_drawings_of_all_vendors(folder):
    found = list(emoji.concepts(folder))
    assert len(found) == CONCEPTS, "flags are left out"
    assert {len(each.drawings) for each in found} == {6}
    assert len({each.label for each in found}) == CONCEPTS


def test_a_model_is_trained_that_open_clip_loads(folder, small, capsys):
    train.main(folder)
    assert "AUC" in capsys.readouterr().out
    made = {path.name for path in (small / "model").iterdir()}
    assert made == {path.name for path in MODEL.iterdir()} - {"safety.json"}
    model = evaluate.Model(small / "model")
    vectors = model.texts(["a rat", "a mouse"])
    assert vectors.shape == (2, 128)
    assert all(value.dtype == torch.float16 for value in _weights(small).values())


def _weights(small):
    return load_file(small / "model" / "cah-tiny.safetensors")


def test_training_that_was_stopped_goes_on_as_if_it_had_not_been(folder, small):
    data = list(emoji.concepts(folder))
    tokenizer = train.write_tokenizer([each.label for each in data])
    config = train.write_config(tokenizer)

    def trainer():
        torch.manual_seed(1)
        drawings, texts = train.Drawings(data[:20]), train.Texts(data[:20], tokenizer)
        return train.Trainer(drawings, texts, train.CLIP(**config))

    one, other = trainer(), trainer()
    one.train_one()
    one.save(small / "checkpoint.pt")
    expected = one.train_one()
    other.resume(small / "checkpoint.pt")
    assert (other.step, other.train_one()) == (1, expected)


def test_scenes_are_drawn_and_are_the_same_each_time(folder, small, monkeypatch):
    monkeypatch.setattr("sys.argv", ["draw", str(folder)])
    emoji.command(draw.main)
    before = draw.SCENES.read_bytes()
    with tarfile.open(draw.SCENES) as archive:
        names = json.load(archive.extractfile("names.json"))
        for name in names:
            with Image.open(archive.extractfile(name)) as picture:
                assert min(picture.size) >= 256
    assert len(names) == 24
    draw.main(folder)
    assert draw.SCENES.read_bytes() == before
    assert draw.SCENES != world.SCENES


def test_without_npm_it_is_said_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["draw", str(tmp_path / "new")])
    with pytest.raises(SystemExit, match="could not be fetched with npm"):
        emoji.command(draw.main)
