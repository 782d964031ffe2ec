"""Images that mean the same are found by their embeddings, and one of each stays."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from cahlib.commands.cli import main
from cahlib.core.lock import lock_dataset
from cahlib.core.records import DropReason
from cahlib.dataset.maintain import rewrite
from cahlib.dataset.maintain.similar import find_similar
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.vectors import open_vectors, unit_rows
from tests.world import judged as world


class Matrix:
    """Vectors as a dataset has them, from memory."""

    def __init__(self, rows):
        self.rows, self.width = rows.astype("f2"), rows.shape[1]

    def __len__(self):
        return len(self.rows)

    def take(self, rows):
        return unit_rows(self.rows[rows].astype("f4"))

    def blocks(self, size):
        for low in range(0, len(self), size):
            yield low, self.take(np.arange(low, min(low + size, len(self))))


def embeddings(count, width=64, *, near=0.3, seed=0):
    """Vectors around some hundred directions; a share of them is near another one."""
    chance = np.random.default_rng(seed)
    rows = chance.normal(size=(100, width))[chance.integers(0, 100, count)]
    rows = unit_rows((rows + chance.normal(size=rows.shape)).astype("f4"))
    same = chance.permutation(count)[: int(near * count)]
    noise = unit_rows(chance.normal(size=(len(same), width)).astype("f4"))
    cosine = chance.uniform(0.9, 1, (len(same), 1))
    rows[same] = rows[chance.integers(0, count, len(same))] * cosine
    rows[same] += noise * np.sqrt(1 - cosine**2)
    return Matrix(unit_rows(rows))


def by_force(vectors, order, threshold):
    """Which rows have a better one near them that stays."""
    gone = np.zeros(len(order), bool)
    every = vectors.take(order)
    for at in range(1, len(order)):
        gone[at] = (every[:at][~gone[:at]] @ every[at]).max() >= threshold
    return np.sort(order[gone])


@pytest.mark.parametrize("threshold", [0.8, 0.95, 1.0])
def test_what_is_compared_without_clusters_is_what_brute_force_finds(threshold):
    vectors = embeddings(3000)
    vectors.rows[1000:1100] = vectors.rows[7]  # the same picture a hundred times
    order = np.random.default_rng(5).permutation(3000)
    found = find_similar(vectors, order, threshold)
    wanted = by_force(vectors, order, threshold - 1e-4)
    assert len(np.setxor1d(found.rows, wanted)) <= 2  # rounding
    assert len(wanted) >= 100


def test_clusters_find_nearly_all_and_whatever_goes_has_one_that_stays():
    vectors = embeddings(8_000)
    order = np.random.default_rng(5).permutation(len(vectors))
    rank = np.argsort(order)
    exact = find_similar(vectors, order, 0.95)
    done = []
    found = find_similar(vectors, order, 0.95, exact=0, progress=lambda *each: done.append(each))
    assert done[-1] == (8_000, 8_000)
    assert 800 < len(exact.rows)
    assert len(np.intersect1d(found.rows, exact.rows)) >= 0.99 * len(exact.rows)
    for each in exact, found:
        assert not np.isin(each.kept, each.rows).any()
        assert (rank[each.kept] < rank[each.rows]).all()
        cosines = (vectors.take(each.rows) * vectors.take(each.kept)).sum(axis=1)
        assert np.abs(cosines - each.cosines).max() < 2e-4 and each.cosines.min() >= 0.9499


def test_rows_without_a_direction_are_like_no_other():
    vectors = Matrix(np.zeros((50, 8)))
    assert len(find_similar(vectors, np.arange(50), 0.5).rows) == 0


def meaning(number, like, cosine, **values):
    """A judged image whose embedding has this cosine to that of another number."""
    made = world.judged(number, **values)
    near, own = (made_of(each) for each in (like, number))
    own = unit_rows((own - (own @ near.T) * near).astype("f4"))
    vector = (cosine * near + np.sqrt(1 - cosine**2) * own)[0]
    text = made_of(number + 1000)[0]
    text = unit_rows((text - (text @ vector) * vector)[None])[0]
    text = made.similarity * vector + np.sqrt(1 - made.similarity**2) * text
    return replace(made, image_embedding=vector.astype("f2"), text_embedding=text.astype("f2"))


def made_of(number):
    return world.embeddings(number, 0.4)[0].astype("f4")[None]


def sized(made, side):
    return replace(made, image=replace(made.image, width=side, height=side))


@pytest.fixture
def folder(tmp_path):
    """0, 10 and 20 mean the same, as do 1 and 11; the largest are 20 and 1; 12 is less near."""
    first = [sized(world.judged(n, similarity=0.5 - n / 100), 200) for n in range(4)]
    first.append(sized(meaning(10, 0, 0.97, similarity=0.31), 100))
    second = [
        sized(meaning(20, 0, 0.98, similarity=0.32), 300),
        sized(meaning(11, 1, 0.96, similarity=0.9), 100),
        sized(meaning(12, 2, 0.90, similarity=0.33), 100),
    ]
    world.write_these(tmp_path, first, shard="s-0")
    world.write_these(tmp_path, second, shard="s-1")
    return tmp_path


def test_the_report_comes_first_and_shows_what_is_alike(folder, capsys):
    assert main(["dedup", str(folder), "--semantic", "0.95"]) == 0
    out, notes = capsys.readouterr()
    assert "3 of 8 images mean the same as another of the dataset." in out
    examples = [line.split() for line in out.splitlines()[1:]]
    assert [line[0] for line in examples] == sorted(line[0] for line in examples)
    of = {line[1].split("/")[-1][:2]: line[-1].split("/")[-1][:2] for line in examples}
    assert of == {"0.": "20", "10": "20", "11": "1."}
    assert "--apply" in notes and world.left(folder) == [0, 1, 2, 3, 10, 11, 12, 20]
    assert main(["dedup", str(folder), "--semantic", "0.95", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["duplicates"], found["semantic"], len(found["examples"])) == (3, 0.95, 3)


def test_a_terminal_shows_how_far_the_comparison_is(folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    for more, drawn in ([], True), (["--quiet"], False):
        monkeypatch.setattr(sys, "stderr", shown := Terminal())
        assert main(["dedup", str(folder), "--semantic", "0.95", *more]) == 0
        assert ("\r" in shown.getvalue() and " images [" in shown.getvalue()) == drawn


def test_a_further_model_is_named_as_everywhere(folder, tmp_path_factory, capsys):
    """Rows are 0 1 2 3 10 and 20 11 12; by the other model 2 and 12 mean the same, 0 and 20 not."""
    apart = np.random.default_rng(0).normal(size=(8, 16))
    apart[7] = apart[2]
    world.add_vectors(folder, "ViT-L-14-quickgelu/dfn2b", apart)
    for named in ("ViT-L-14-quickgelu/dfn2b", "quality"):  # as the dataset has it, and the preset
        words = ["dedup", str(folder), "--semantic", "0.95", "--model", named]
        assert main([*words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["duplicates"], found["model"]) == (1, named)
        assert "/12.jpg" in found["examples"][0]["url"] + found["examples"][0]["like"]
    foreign = [world.judged(number, similarity=0.4) for number in (2, 5)]
    other = tmp_path_factory.mktemp("other")
    world.write_these(other, foreign)
    world.add_vectors(other, "ViT-L-14-quickgelu/dfn2b", apart[6:])
    assert main([*words, "--against", str(other)]) == 0
    assert "3 of 8 images look like or mean the same" in capsys.readouterr().out  # 2, 12, and 11
    for more, sentence in (
        (["--semantic", "0.9", "--model", "datacomp"], "no vectors by ViT-B-32-256/datacomp_s34b"),
        (["--semantic", "0.9", "--model", "nothing"], "neither a preset"),
        (["--model", "quality"], "give --semantic too"),
    ):
        assert main(["dedup", str(folder), *more]) == 2
        errors = capsys.readouterr().err
        assert sentence in errors and errors.count("\n") == 1, errors


@pytest.mark.parametrize(
    ("keep", "stay"), [("largest", [1, 2, 3, 12, 20]), ("most-similar", [0, 2, 3, 11, 12])]
)
def test_of_each_the_one_that_is_asked_for_stays(folder, capsys, keep, stay):
    words = ["dedup", str(folder), "--semantic", "0.95", "--keep", keep]
    assert main([*words, "--apply"]) == 0
    assert world.left(folder) == stay and list(verify(folder)) == []
    lost = sum(each.stats.dropped[DropReason.SAME_MEANING] for each in read_manifests(folder))
    assert lost == 3
    assert len(open_vectors(folder)) == 5
    capsys.readouterr()
    assert main(words) == 0
    assert "0 of 5 images mean" in capsys.readouterr().out


def test_the_rule_holds_for_looks_too(tmp_path, capsys):
    same = world.judged(1, similarity=0.5)
    small = replace(world.judged(2, similarity=0.9), image=sized(same, 80).image)
    small = replace(small, image=replace(small.image, candidate=world.judged(2).image.candidate))
    world.write_these(tmp_path, [same, small], shard="s-0")
    assert main(["dedup", str(tmp_path), "--keep", "most-similar", "--apply"]) == 0
    assert "0 bits: https://host1.example/1.jpg" in capsys.readouterr().out
    assert world.left(tmp_path) == [2]


@pytest.mark.parametrize("moment", range(3))
def test_a_removal_that_was_interrupted_is_completed_by_the_next(folder, monkeypatch, moment):
    class Killed(BaseException):
        pass

    calls, commit = [], rewrite.ShardWriter.commit

    def killed(writer, manifest):
        calls.append(manifest)
        if len(calls) == moment // 2 + 1:
            if moment % 2:
                commit(writer, manifest)
            raise Killed
        commit(writer, manifest)

    words = ["dedup", str(folder), "--semantic", "0.95", "--apply"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(rewrite.ShardWriter, "commit", killed)
        main(words)
    assert main(words) == 0
    assert world.left(folder) == [1, 2, 3, 12, 20] and list(verify(folder)) == []


def test_mistakes_are_said_in_one_sentence(folder, tmp_path_factory, capsys):
    place = tmp_path_factory.mktemp("others")
    world.write(place / "none", spec=world.with_forms("images"))
    world.write(place / "mixed", shard="s-0")
    world.write(place / "mixed", shard="s-1", spec=replace(world.SPEC, model="another/model"))
    (place / "empty").mkdir()
    for name, more, sentence in (
        (folder, ["--semantic", "1.5"], "1.5 is not a cosine from 0.5 to 1"),
        (folder, ["--semantic", "nan"], "nan is not a cosine from 0.5 to 1"),
        (folder, ["--semantic", "0"], "0 is not a cosine"),
        (place / "empty", ["--semantic", "0.9"], "holds no dataset"),
        (place / "none", ["--semantic", "0.9"], "shard s-0 has no embeddings"),
        (place / "mixed", ["--semantic", "0.9"], "cannot be compared"),
    ):
        for apply in [], ["--apply"]:
            assert main(["dedup", str(name), *more, *apply]) == 2
            out, errors = capsys.readouterr()
            assert sentence in errors and errors.count("\n") == 1 and not out
    with lock_dataset(folder):
        assert main(["dedup", str(folder), "--semantic", "0.95", "--apply"]) == 2
    assert "another command is writing to" in capsys.readouterr().err
    (folder / "img_emb/img_emb_s-1.npy").write_bytes(b"\x93NUMPY")
    assert main(["dedup", str(folder), "--semantic", "0.95", "--apply"]) == 1
    assert "`cah verify`" in capsys.readouterr().err
    assert world.left(folder) == [0, 1, 2, 3, 10, 11, 12, 20]


def test_a_large_dataset_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    from cahlib.core.errors import ConfigError

    with pytest.raises(ConfigError, match=r"faiss is not installed; .*cahlib\[similar\]"):
        find_similar(embeddings(300), np.arange(300), 0.9, exact=0)
    assert len(find_similar(embeddings(300), np.arange(300), 0.9).rows)
