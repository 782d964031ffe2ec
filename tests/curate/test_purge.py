"""What must go goes, from every file; what is interrupted goes on."""

import json

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahlib.cli import main
from cahlib.curate import purge as purging
from cahlib.curate import seal
from cahlib.curate.purge import LOG, purge
from cahlib.curate.verify import verify
from cahlib.errors import ConfigError
from cahlib.records import Reason, Stage
from tests.world import judged as world


@pytest.fixture
def folder(tmp_path):
    world.write(tmp_path / "set", shard="s-0")
    world.write(tmp_path / "set", first=100, shard="s-1")
    return tmp_path / "set"


def rows(folder):
    return pq.read_table(folder / "metadata").to_pylist()


def state(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (LOG, "report.html", "README.md")
    }


@pytest.mark.parametrize(
    ("option", "column"),
    [("hashes", "md5"), ("hashes", "sha256"), ("urls", "URL"), ("uids", "uid")],
)
def test_a_list_takes_its_pairs_out_of_every_file(folder, tmp_path, capsys, option, column):
    before = rows(folder)
    gone, unknown = before[::4], "0" * 32
    lines = [row[column] if option == "urls" else row[column].upper() for row in gone]
    (tmp_path / "list").write_text("# why\n" + "\n".join([*lines, unknown]) + "\n")
    assert main(["purge", str(folder), f"--{option}", str(tmp_path / "list")]) == 0
    said = capsys.readouterr().out
    assert f"{len(gone)} pairs of 2 shards" in said
    assert f"1 of {len(gone) + 1} entries are of no pair" in said
    assert list(verify(folder)) == []
    assert rows(folder) == [row for row in before if row not in gone]
    for sealed in seal.seals(folder):
        assert sealed.tally.lost[Reason.PURGED] > 0
        assert sealed.tally.unaccounted(Stage.JUDGE) == 0
        assert not {shown.uid for shown in sealed.gallery} & {row["uid"] for row in gone}
        assert option != "hashes" or all(shown.kept for shown in sealed.gallery)
    told = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    assert sorted(uid for line in told for uid in line["uids"]) == sorted(r["uid"] for r in gone)


def test_what_is_not_there_changes_nothing(folder):
    before = state(folder)
    assert purge(folder, lambda row: False) == {}
    assert state(folder) == before


def test_everything_can_go(folder):
    assert sum(purge(folder, lambda row: True).values()) == 30
    assert list(verify(folder)) == []
    assert not list((folder / "images").iterdir())


class Killed(BaseException):
    """Stands for the end of the process."""


@settings(max_examples=25, deadline=None)
@given(moment=st.integers(0, 40))
def test_a_purge_that_is_killed_at_any_moment_goes_on(tmp_path_factory, moment):
    folder = tmp_path_factory.mktemp("killed")
    world.write(folder, count=10, shard="s-0")
    uids = [row["uid"] for row in rows(folder)][::2]
    left = [moment]

    def doomed(row):
        return row["uid"] in uids

    with pytest.MonkeyPatch.context() as patch:
        path = type(folder)
        replace = path.replace

        def mortal(self, target):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return replace(self, target)

        patch.setattr(path, "replace", mortal)
        try:
            purge(folder, doomed)
        except Killed:
            pass
    purge(folder, doomed)
    assert list(verify(folder)) == []
    assert not {row["uid"] for row in rows(folder)} & set(uids)
    assert not [path for path in folder.rglob("*") if path.name.endswith(".purged")]
    told = [json.loads(line)["uids"] for line in (folder / LOG).read_text().splitlines()]
    assert sorted(uids) in told


def test_a_shard_whose_files_are_elsewhere_is_not_touched(folder):
    sealed = seal.sealed(folder, "s-1")
    moved = purging.dataclasses.replace(sealed, place="memory://there")
    (folder / seal.name("s-1")).write_bytes(seal.packed(moved))
    with pytest.raises(ConfigError, match="s-1 are at memory://there"):
        purge(folder, lambda row: True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what has to go"),
        (["--hashes", "absent"], "absent cannot be read as a list"),
        (["--uids", "list"], "line 1 of list is not one uid: http"),
        (["--hashes", "list"], "line 1 of list is not one md5, sha1 or sha256"),
    ],
)
def test_a_mistake_is_said_in_one_sentence(folder, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text("http://a.example/b.jpg\n")
    before = state(folder)
    assert main(["purge", str(folder), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert state(folder) == before


def test_a_folder_without_a_dataset(tmp_path, capsys):
    (tmp_path / "list").write_text("0" * 32)
    assert main(["purge", str(tmp_path), "--uids", str(tmp_path / "list")]) == 2
    assert "holds no dataset" in capsys.readouterr().err


def test_a_list_of_domains_is_built_from_datasets(folder, tmp_path, capsys):
    sealed = seal.sealed(folder, "s-1")
    known = purging.dataclasses.replace(
        sealed, silent=("dead.example", "gone.example", "host1.example")
    )
    (folder / seal.name("s-1")).write_bytes(seal.packed(known))
    out = str(tmp_path / "failed.txt")
    assert main(["blocklist", "build", str(folder), "--output", out]) == 0
    capsys.readouterr()
    assert main(["blocklist", "show", out]) == 0
    assert capsys.readouterr().out == "dead.example\ngone.example\n# 2 domains\n"
    assert main(["blocklist", "build", str(folder), "--output", out, "--least", "2"]) == 0
    assert main(["blocklist", "build", str(tmp_path / "absent")]) == 2
