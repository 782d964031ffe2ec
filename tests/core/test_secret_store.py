"""Secrets lie apart from the dataset, and what is the run's own is not published with it."""

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from cahlib.core.config import Job
from cahlib.core.errors import ConfigError
from cahlib.core.secret_store import STATE_VARIABLE, run_name, secret_path
from cahlib.run.open_run import open_run_directory
from cahlib.swarm.keys import SwarmKeys

OWN = "run/swarm"


def launched(folder, **settings):
    job = Job.from_values({"crawl": "a.wat.gz", "output": str(folder), **settings})
    with open_run_directory(job, role="hybrid", stop=threading.Event()):
        pass


def test_keys_are_found_again_by_the_name_of_the_run(tmp_path):
    there = secret_path(tmp_path / "a" / OWN, "keys")
    SwarmKeys(there).ssh()
    assert (
        secret_path(tmp_path / "a" / OWN, "keys")
        == there
        != secret_path(tmp_path / "b" / OWN, "keys")
    )
    (tmp_path / "a").rename(tmp_path / "c")
    assert secret_path(tmp_path / "c" / OWN, "keys") == there
    assert there.is_relative_to(Path.home() / ".local/state/cahlib")
    assert {oct(each.stat().st_mode)[-2:] for each in (there.parent, *there.iterdir())} == {"00"}


def test_keys_beside_a_dataset_are_moved_once_by_whatever_is_started_there(tmp_path):
    old = SwarmKeys(tmp_path / OWN / "keys")
    private = old.ssh().private
    text = private.read_bytes()
    run_name(tmp_path / OWN)
    launched(tmp_path)
    assert not old.folder.exists()
    moved = SwarmKeys(secret_path(tmp_path / OWN, "keys")).ssh().private
    assert moved.read_bytes() == text and oct(moved.stat().st_mode)[-3:] == "600"
    shutil.copytree(moved.parent, old.folder)  # killed after the copy was whole
    launched(tmp_path)
    assert not old.folder.exists() and moved.read_bytes() == text


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("{dataset}/keys", "is inside the dataset's folder"),
        ("keys", "give the absolute path of a folder"),
        ("/proc/keys", "cannot be written"),
    ],
)
def test_there_is_no_other_place_for_keys(tmp_path, monkeypatch, state, sentence):
    monkeypatch.setenv(STATE_VARIABLE, state.format(dataset=tmp_path))
    with pytest.raises(ConfigError, match=sentence):
        secret_path(tmp_path / OWN, "keys")


def test_who_publishes_the_folder_leaves_the_run_out(tmp_path):
    launched(tmp_path)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "metadata_a.parquet").touch()
    said = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    line = ["git", "-C", tmp_path, "ls-files", "--others", "--exclude-standard"]
    kept = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert "run/ledger.sqlite" in said
    assert set(kept) == {".gitignore", "metadata/metadata_a.parquet"}


def test_a_gitignore_of_the_users_stays_as_it_is(tmp_path):
    (tmp_path / ".gitignore").write_text("mine")
    launched(tmp_path)
    assert (tmp_path / ".gitignore").read_text() == "mine"


def test_the_hubs_uploader_sends_the_rule_along(tmp_path):
    """The hub applies what lies in the folder as .gitignore: it has to be among the files."""
    hub = pytest.importorskip("huggingface_hub")
    launched(tmp_path)
    added = hub.HfApi()._prepare_upload_folder_additions(tmp_path, "")
    (rule,) = [each for each in added if each.path_in_repo == ".gitignore"]
    with rule.as_file() as file:
        assert b"\n/run/\n" in file.read()


def test_kaggles_uploader_leaves_the_run_out_as_the_readme_says(tmp_path):
    api = pytest.importorskip("kaggle.api.kaggle_api_extended")
    assert api.should_ignore("run", True, ["run/"])
    assert not api.should_ignore("metadata", True, ["run/"])
