"""Every command that takes a dataset refuses a place without one, in a sentence and with code 2."""

import shlex

import pytest

from cahlib.commands.cli import _parser
from tests.world.command import said

TAKES_DATASET = {
    path: parser
    for path, parser in dict(_parser().commands()).items()
    if any(each.metavar == "DATASET" for each in parser._actions)
}
PLACES = {
    "": "Give the folder or the URL of a dataset.",
    "file": "file holds no dataset: it is a file; name the dataset's folder.",
    "file/in": "file/in holds no dataset: it cannot be opened (Not a directory); check the path.",
    "missing": "missing holds no dataset: there is no such folder; check the path.",
    "file:///nowhere/at/all": "file:///nowhere/at/all holds no dataset: there is no such folder; "
    "check the path.",
    "gopher://a/b": "gopher://a/b cannot be used: Protocol not known: gopher.",
}
#: Folders are looked into by the commands themselves.
FOLDERS = {
    place: f"{place} holds no dataset: no shard has a manifest in shards/."
    for place in ("empty", "another")
}
#: A store at a URL, which some commands do not change.
STORE = "memory://nothing/there"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The things instead of a dataset, and the files that the commands' examples name beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAH_CONTACT", "tests@example.org")
    (tmp_path / "file").write_text("not a dataset")
    (tmp_path / "take-downs.txt").write_text("https://example.org/a.jpg\n")
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    (tmp_path / "another/notes.txt").write_text("somebody's")
    return tmp_path


def test_the_commands_that_take_a_dataset_are_known():
    assert {path.partition(" ")[2] for path in TAKES_DATASET} == {
        "inspect", "verify", "repair", "purge", "dedup", "score", "browse", "select", "why",
        "retry", "blocklist build",
    }  # fmt: skip


@pytest.mark.parametrize("path", TAKES_DATASET)
def test_a_place_without_a_dataset_is_refused_and_left_as_it_was(path, world, capsys):
    words = shlex.split(TAKES_DATASET[path].get_default("example"))[1:]
    before = sorted(world.rglob("*"))
    for place, sentence in (PLACES | FOLDERS).items():
        ran = said(capsys, *(place if each == "demo-dataset" else each for each in words))
        assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", f"cah: {sentence}\n")
    ran = said(capsys, *(STORE if each == "demo-dataset" else each for each in words))
    assert (ran.returncode, ran.stdout) == (2, "") and STORE in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert sorted(world.rglob("*")) == before


def test_a_list_is_not_made_of_datasets_one_of_which_is_none(world, capsys):
    ran = said(capsys, "blocklist", "build", "empty", "missing")
    assert ran.returncode == 2 and ran.stderr.startswith("cah: missing holds no dataset")
    assert not (world / "failed-domains.txt").exists()
