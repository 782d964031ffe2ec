"""What the README shows is what is there."""

import re
import subprocess
import sys

import pytest

import cahlib
from cahlib.config import settings
from cahlib.dataset.show.pages import write_pages
from tests import tree
from tests.world import judged

README = tree.README.read_text(encoding="utf-8")


def test_the_tree_equals_the_files():
    assert tree.block("tree", tree.tree()) in README, "run: make readme"


def test_every_command_is_shown():
    ran = subprocess.run(
        [sys.executable, "-m", "cahlib.cli", "--help"], capture_output=True, text=True, check=True
    )
    commands = re.findall(r"^    (\w+) ", ran.stdout, flags=re.MULTILINE)
    assert len(commands) >= 4
    assert [command for command in commands if f"cah {command}" not in README] == []


def test_every_option_that_is_shown_exists():
    shown = set(re.findall(r"cah run[^`]*?(--[a-z-]+)", README))
    ran = subprocess.run(
        [sys.executable, "-m", "cahlib.cli", "run", "--help-all"], capture_output=True, text=True
    )
    assert shown and {option for option in shown if option not in ran.stdout} == set()
    told = " ".join(ran.stdout.split())  # however wide the terminal is
    assert [
        each.name for each in settings() if each.bounds().removeprefix(" of").strip() not in told
    ] == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's file
def test_the_code_that_loads_a_dataset_runs_without_a_warning(tmp_path, monkeypatch, capsys):
    for number in (0, 1):
        judged.write(tmp_path / "my-dataset", first=100 * number, shard=f"s-{number}")
    write_pages(tmp_path / "my-dataset", {})
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.search(r"```python\n(import pandas.*?)```", README, flags=re.DOTALL)[1], names)
    assert len(names["table"]) == len(capsys.readouterr().out.splitlines()) == 30


def test_the_latest_changes_are_those_of_this_version():
    assert re.search(r"## Changes\s+### (\S+)", README)[1] == cahlib.__version__
