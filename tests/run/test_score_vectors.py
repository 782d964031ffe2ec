"""Prompts and heads score the vectors that a dataset has; no image is read."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

pytest.importorskip("open_clip", reason="prompts need: pip install 'cahlib[gpu]'")

from cahlib.commands.cli import main
from cahlib.core.config import Job, Judge
from cahlib.core.errors import ConfigError, RunError
from cahlib.dataset.description import commit_shards, describe_job
from cahlib.dataset.maintain.purge import PurgeLists, purge
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.query import PairQuery
from cahlib.dataset.show.pages import write_pages
from cahlib.run.score_again import score_dataset
from cahlib.run.score_vectors import score_by_head, score_by_prompts
from tests.world import judged as world
from tests.world import models

TOPICS = {"topic": {"sea": ["the sea", "a wave"], "x-ray": ["an x-ray"], "other": ["a photo"]}}
COLUMNS = ["topic", "topic_sea", "topic_x-ray", "topic_other"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    world.write(folder, shard="s-0")
    world.write(folder, count=10, first=100, shard="s-1")
    write_pages(folder, {})
    list(score_dataset(folder, judge(model), embeddings=True))
    for tar in folder.glob("images/*.tar"):
        tar.unlink()  # so that nothing can read an image
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "dataset")


def judge(model):
    return Judge(model=str(model), threshold=-1)


def listed(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def head(folder, **more):
    card = {"name": "taste", "backbone": "tiny/random", "width": 32, "kind": "linear"}
    weight = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)
    save_file({"0.weight": weight, "0.bias": np.ones(1, np.float32)}, folder / "taste.safetensors")
    return listed(folder / "taste.json", card | more), weight


def table(folder, shard="s-0"):
    return pq.read_table(folder / f"metadata/metadata_{shard}.parquet")


def vectors(folder, shard="s-0"):
    return np.load(folder / f"img_emb.tiny_random/img_emb_{shard}.npy").astype(np.float32)


def test_prompts_give_shares_of_the_softmax(folder, model, tmp_path):
    path = listed(tmp_path / "topics.json", TOPICS | {"about": "what is shown"})
    changes = list(score_by_prompts(folder, path, judge(model)))
    assert [each.pairs for each in changes] == [15, 5] and changes[0].columns == tuple(COLUMNS)
    prompts = [prompt for label in TOPICS["topic"].values() for prompt in label]
    _, embedded = models.plain_embeddings(models.plain(model), [models.picture(1)], prompts)
    logits = 100 * vectors(folder) @ embedded.T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    wanted = np.stack([weights[:, :2].sum(axis=1), weights[:, 2], weights[:, 3]], axis=1)
    rows = table(folder)
    assert rows.column_names[-4:] == COLUMNS
    found = np.stack([rows[name].to_numpy() for name in COLUMNS[1:]], axis=1)
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-2
    names = np.array(["sea", "x-ray", "other"])
    assert rows["topic"].to_pylist() == names[found.argmax(axis=1)].tolist()
    assert list(score_by_prompts(folder, path, judge(model))) == []


def test_the_model_is_the_dataset_s_own_unless_another_is_named(model, tmp_path, capsys):
    folder, path = tmp_path / "dataset", listed(tmp_path / "topics.json", TOPICS)
    job = Job(judge=Judge(model=str(model), threshold=0.3))
    world.write(folder, spec=replace(world.SPEC, model="tiny/random"))
    commit_shards(folder, describe_job(job), ["s-0"])
    assert main(["score", str(folder), "--prompts", path]) == 2  # a path is not in dataset.json
    assert "name the model of the dataset's vectors" in capsys.readouterr().err
    job.store(folder / "run" / "job.json")
    assert main(["score", str(folder), "--prompts", path]) == 0
    assert table(folder).column_names[-4:] == COLUMNS
    imposter = models.write(tmp_path / "imposter", seed=1)
    listed(tmp_path / "topics.json", {"topic": {"land": ["the land"], "sea": ["the sea"]}})
    assert main(["score", str(folder), "--prompts", path, "--model", str(imposter)]) == 2
    assert "another model called tiny/random" in capsys.readouterr().err
    assert main(["score", str(folder), "--model", str(imposter)]) == 2
    assert "another model called tiny/random" in capsys.readouterr().err
    assert "topic_land" not in table(folder).column_names


def test_labels_of_all_scripts_have_columns_of_their_own(folder, model, tmp_path):
    labels = ["море", "пляж", "हिन्दी", "a b", "a_b", "A b", "日本", "Mu\u0308ll", "!x", "?x"]
    topics = {"тема": {label: [f"a photo {n}"] for n, label in enumerate(labels)}}
    columns = ["тема", "тема_море", "тема_пляж", "тема_हिन्दी", "тема_a_b", "тема_a_b_2",
               "тема_A_b_3", "тема_日本", "тема_Müll", "тема__x", "тема__x_2"]  # fmt: skip
    list(score_by_prompts(folder, listed(tmp_path / "topics.json", topics), judge(model)))
    rows = table(folder)
    assert rows.column_names[-11:] == columns
    assert [each for each in verify(folder) if ".tar is missing" not in each] == []
    shares = np.stack([rows[name].to_numpy() for name in columns[1:]], axis=1)
    assert np.abs(shares.sum(axis=1) - 1).max() < 1e-5
    assert [labels[each] for each in shares.argmax(axis=1)] == rows["тема"].to_pylist()
    pairs = PairQuery(folder)
    for name in columns[1:]:
        found = pairs.numbers(pairs.quoted(name))[: len(rows)]
        assert (found == rows[name].to_numpy()).all(), name


def test_a_cap_per_nearest_concept_balances_a_dataset(folder, model, tmp_path, capsys):
    """The two commands of the guide, against a count by hand."""
    path = listed(tmp_path / "concepts.json", {"concept": [f"a photo of {n}" for n in range(9)]})
    assert main(["score", str(folder), "--prompts", path, "--model", str(model)]) == 0
    _, prompts = models.plain_embeddings(
        models.plain(model), [models.picture(1)], [f"a photo of {n}" for n in range(9)]
    )
    near = (np.concatenate([vectors(folder, f"s-{n}") for n in range(2)]) @ prompts.T).argmax(1)
    rows = pq.read_table(folder / "metadata", columns=["concept"])["concept"].to_pylist()
    assert rows == [f"a photo of {n}" for n in near]
    assert table(folder).column_names[-1] == "concept"  # thousands of concepts are one column
    capsys.readouterr()
    assert main(["select", str(folder), "--max-per", "concept", "2", "--json"]) == 0
    stay = sum(min(2, count) for count in np.bincount(near).tolist())
    assert json.loads(capsys.readouterr().out)["stay"] == stay < len(near)


def test_changed_prompts_replace_their_own_columns_alone(folder, model, tmp_path):
    path = listed(tmp_path / "topics.json", TOPICS | {"style": {"a": ["x"], "b": ["y"]}})
    list(score_by_prompts(folder, path, judge(model)))
    style = table(folder)["style_a"].to_pylist()
    listed(tmp_path / "topics.json", {"topic": {"land": ["the land"], "sea": ["the sea"]}})
    assert len(list(score_by_prompts(folder, path, judge(model)))) == 2
    rows = table(folder)
    assert rows.column_names[-6:] == [
        "style", "style_a", "style_b", "topic", "topic_land", "topic_sea",
    ]  # fmt: skip
    assert "topic_x-ray" not in rows.column_names and rows["style_a"].to_pylist() == style
    uids = rows["uid"].to_pylist()
    gone = listed(tmp_path / "uids", "".join(f"{uid}\n" for uid in uids[:1]))
    with pytest.raises(RunError):  # of the images, which are not there
        list(purge(folder, PurgeLists(uids=[gone])))


def test_columns_of_texts_are_kept_by_a_purge(model, tmp_path):
    folder = tmp_path / "dataset"
    world.write(folder)
    list(score_dataset(folder, judge(model), embeddings=True))
    list(score_by_prompts(folder, listed(tmp_path / "p.json", TOPICS), judge(model)))
    rows = table(folder)
    gone = listed(tmp_path / "uids", f"{rows['uid'][0]}\n")
    assert len(list(purge(folder, PurgeLists(uids=[gone])))) == 1
    assert table(folder).equals(rows.slice(1)) and list(verify(folder)) == []


def test_a_head_scores_what_is_stored(folder, tmp_path, capsys):
    path, weight = head(tmp_path, threshold=9.0, drop="below")
    assert main(["score", str(folder), "--head", path]) == 0
    column = "clip_tiny_random_taste"
    assert capsys.readouterr().out == f"Scored 20 pairs in 2 shards: {column}.\n"
    wanted = (vectors(folder) @ weight.T)[:, 0] + 1
    assert np.allclose(table(folder)[column].to_numpy(), wanted, atol=1e-5)
    assert max(wanted) < 9 and len(wanted) == 15  # nothing is dropped
    assert list(score_by_head(folder, path)) == []


def test_pairs_without_a_vector_have_no_score(folder, tmp_path):
    path, _ = head(tmp_path)
    of_first = vectors(folder)
    of_first[0] = 0
    world.replace_matrix(folder, "s-0", "img_emb.tiny_random/img_emb_s-0.npy", of_first)
    first, _ = score_by_head(folder, path)
    assert (first.pairs, first.unreadable) == (14, 1)
    assert table(folder)["clip_tiny_random_taste"].to_pylist()[0] is None


def test_damaged_vectors_are_one_shard_s_only(folder, tmp_path, capsys):
    path, _ = head(tmp_path)
    with open(folder / "img_emb.tiny_random/img_emb_s-1.npy", "ab") as file:
        file.write(b"more")
    assert main(["score", str(folder), "--head", path]) == 1
    assert "shard s-1 is damaged: img_emb.tiny_random" in capsys.readouterr().err
    assert "clip_tiny_random_taste" in table(folder).column_names


def test_another_model_s_vectors_are_not_taken(folder, tmp_path):
    imposter = models.write(tmp_path / "imposter", seed=1)
    path = listed(tmp_path / "topics.json", TOPICS)
    with pytest.raises(ConfigError, match="vectors by another model called tiny/random"):
        list(score_by_prompts(folder, path, judge(imposter)))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ([], "there is no set of labels"),
        ({"about": "nothing"}, "there is no set of labels"),
        ({"topic": ["sea", 3]}, "lists 3, which is no text"),
        ({"topic": ["sea", " "]}, "which is no text"),
        ({"topic": ["sea", "land", "sea"]}, 'lists "sea" twice'),
        ({" ": ["sea", "land"]}, "has a name without letters"),
        ({"topic": ["sea"]}, 'the set "topic" needs two labels at least'),
        ({"topic": {"sea": ["a"]}}, 'the set "topic" needs two labels at least'),
        ({"topic": {"sea": ["a"], "land": []}}, '"land" in the set "topic" must be a list'),
        ({"topic": {"sea": ["a"], "land": [" "]}}, '"land" in the set "topic" must be a list'),
        ({"topic": {"sea": ["a"], "land": "b"}}, '"land" in the set "topic" must be a list'),
        ({"topic": {"a": ["a"], "\ud800b": ["b"]}}, '"topic" has a name without letters'),
        ({"topic": {"a": ["a"], "b": ["b\ud800"]}}, '"b" in the set "topic" must be a list'),
        ({"topic": {"a": ["a"], "": ["b"]}}, '"topic" has a name without letters'),
        ({" ": {"a": ["a"], "b": ["b"]}}, "has a name without letters"),
        ({"a b": ["a", "b"], "a_b": ["a", "b"]}, "two sets give the column a_b"),
        ({"a": {"b": ["c"], "d": ["e"]}, "a_b": ["c", "d"]}, "two sets give the column a_b"),
        ({"url": {"a": ["a"], "b": ["b"]}}, "url is already a column of the dataset"),
        ({"clip_tiny_random": {"similarity": ["a"], "b": ["b"]}}, "is already a column of the"),
    ],
)
def test_a_bad_file_is_one_sentence(folder, model, tmp_path, content, fault):
    before = table(folder)
    with pytest.raises(ConfigError, match=fault):
        list(score_by_prompts(folder, listed(tmp_path / "bad.json", content), judge(model)))
    assert table(folder).equals(before)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompts", "absent.json"], "cah: score: name the model of the dataset's vectors"),
        (["--prompts", "absent.json", "--model", "MODEL"], "cah: prompts: absent.json cannot be"),
        (["--head", "absent.json"], "cah: heads: absent.json cannot be read"),
        (["--head", "HEAD", "--preset", "quality"], "cah: score: a head names its model itself"),
        (["--head", "HEAD", "--prompts", "x"], "cah: score: --prompts and --head exclude"),
        (["--head", "HEAD", "--embeddings"], "cah: score: --head and --embeddings exclude"),
        (["--head", "WIDE"], "cah: heads: WIDE expects embeddings of 31 numbers"),
        (["--head", "OTHER"], "cah: DATASET: shard s-0 has no vectors by other/random; `cah"),
    ],
)
def test_mistakes_are_told_in_one_sentence(folder, model, tmp_path, capsys, arguments, sentence):
    names = {"MODEL": str(model), "DATASET": str(folder)}
    for name, more in (
        ("HEAD", {}),
        ("WIDE", {"width": 31}),
        ("OTHER", {"backbone": "other/random"}),
    ):
        (tmp_path / name).mkdir()
        names[name] = head(tmp_path / name, **more)[0]
    assert main(["score", str(folder), *(names.get(each, each) for each in arguments)]) == 2
    for name, value in names.items():
        sentence = sentence.replace(name, value)
    assert capsys.readouterr().err.startswith(sentence)
