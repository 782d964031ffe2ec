"""What is no file where a dataset has one, or no folder, or is not ours to read or to write."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import cahlib.commands.cli
import cahlib.run.pipeline
import cahlib.run.scrapers
from cahlib.core.config import replace_settings
from cahlib.core.lock import lock_dataset
from cahlib.dataset.maintain.verify import verify
from tests.world import command, small

pytestmark = pytest.mark.timeout(120)

#: Of each kind of file one, by a pattern below the dataset's folder.
DATA = [
    "images/*.tar", "metadata/*.parquet", "img_emb/*.npy", "text_emb/*.npy",
    "tfrecords/*.tfrecord", "shards/*.json",
]  # fmt: skip
PAGES = [
    "dataset.json", "report.html", "README.md", "images/sizes.json", "images/nshards.txt",
    "images/README.md",
]  # fmt: skip
RUN = ["run/lock", "run/job.json", "run/ledger.sqlite", "run/live.json"]


@pytest.fixture(scope="module")
def crawl():
    """A crawl where others may read it, too: pytest takes that right from its own folders."""
    with tempfile.TemporaryDirectory() as apart:
        os.chmod(apart, 0o755)
        yield small.write(Path(apart), files=1, links=3)


@pytest.fixture(scope="module")
def made(web, crawl, tmp_path_factory):
    """The folder of a finished dataset of two shards."""
    folder = tmp_path_factory.mktemp("made") / "set"
    cahlib.run.pipeline.run(job_of(crawl, folder, web), scraping=small.scraping)
    return folder


@pytest.fixture
def folder(made):
    """A copy of it where others may go, too."""
    with tempfile.TemporaryDirectory() as apart:
        os.chmod(apart, 0o755)
        yield Path(shutil.copytree(made, Path(apart) / "set"))


@pytest.fixture
def acts(crawl, folder, web, monkeypatch):
    """The commands that change a dataset, by name."""
    monkeypatch.setattr(cahlib.run.scrapers, "open_scrapers", _here)
    (folder.parent / "uids").write_text("0" * 32)
    return {
        "run": ["run", *command.options(job_of(crawl, folder, web))],
        "purge": ["purge", folder, "--uids", folder.parent / "uids"],
        "dedup": ["dedup", folder, "--apply"],
        "repair": ["repair", folder],
    }


def _here(job, *, stop, swarm_status, **_):
    return small.scraping(job, stop=stop, swarm_status=swarm_status)


def job_of(crawl, folder, web):
    return replace_settings(
        small.job(crawl, folder, web), forms=("images", "embeddings", "tfrecords")
    )


def content(folder):
    """The files of the shards."""
    found = (p for p in folder.glob("*/*") if p.is_file() and p.parent.name != "run")
    return {p: p.read_bytes() for p in found if p.relative_to(folder).as_posix() not in PAGES}


def become_folder(path):
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("mine")


def become_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("become", "name"),
    [(become_folder, name) for name in (*DATA, *PAGES[::2], *RUN)]
    + [(become_pipe, name) for name in ("shards/*.json", "dataset.json", "run/lock")],
)
def test_what_is_no_file_is_named_and_left_alone(folder, acts, capsys, name, become):
    path = sorted(folder.glob(name))[0]
    become(path)
    before = content(folder)
    named = path.relative_to(folder).as_posix()
    found = command.said(capsys, "verify", folder)
    assert found.returncode == (name not in RUN), found
    assert name in RUN or f"{named} is not a file, which a dataset needs there." in found.stdout
    for act in acts.values():
        ended = command.said(capsys, *act)
        assert ended.returncode == 2, ended
        assert f"{named} is not a file" in ended.stderr and "move it away" in ended.stderr
    assert content(folder) == before
    assert become is become_pipe or (path / "mine").read_text() == "mine"
    path.rename(folder.parent / "away")
    assert command.said(capsys, *acts["repair"]).returncode == 0
    assert command.said(capsys, *acts["run"]).returncode == 0
    assert list(verify(folder)) == []


@pytest.mark.parametrize("name", ["images", "metadata", "shards", "run"])
def test_what_is_no_folder_is_named(folder, acts, capsys, name):
    (folder / name).rename(folder.parent / "away")
    (folder / name).write_text("mine")
    for act in acts.values():
        ended = command.said(capsys, *act)
        assert ended.returncode == 2 and str(folder) in ended.stderr, ended
    (folder / name).unlink()
    (folder.parent / "away").rename(folder / name)
    assert command.said(capsys, *acts["run"]).returncode == 0
    assert list(verify(folder)) == []


@pytest.mark.parametrize("names", [DATA, PAGES, ["images", "metadata", "shards", "run"]])
def test_a_link_is_what_it_leads_to(folder, acts, capsys, caplog, tmp_path, names):
    paths = [path for name in names for path in sorted(folder.glob(name))]
    for path in paths:
        away = folder.parent / f"{path.parent.name} {path.name}"
        path.rename(away)
        path.symlink_to(away)
    before = content(folder)
    for act in (["verify", folder], acts["run"], acts["repair"], acts["purge"]):
        assert command.said(capsys, *act).returncode == 0
    assert content(folder) == before
    assert command.said(capsys, *acts["dedup"]).returncode == 0
    assert list(verify(folder)) == []
    links = re.findall(
        r"(\S+) was a link; its target (.+) still has the removed pairs", caplog.text
    )
    assert len(links) == (len(paths) - 2 if names is DATA else 0)  # a manifest holds no pairs
    assert all(Path(away).exists() for _, away in links)
    if names[0] == "images":
        return
    for path in paths:  # and now their disk is gone
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "nowhere")
    assert list(verify(folder))
    assert command.said(capsys, *acts["repair"]).returncode == 0
    assert command.said(capsys, *acts["run"]).returncode == 0
    assert list(verify(folder)) == []


@contextlib.contextmanager
def nobody(folder):
    """Be a user who owns this folder, and has no rights but those of all."""
    for path in (folder.parent, folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@root
@pytest.mark.parametrize("name", ["images/00000.tar", "shards/*.json", "dataset.json"])
def test_what_may_not_be_read_is_not_given_up(folder, acts, capsys, name):
    path = sorted(folder.glob(name))[0]
    before = content(folder)
    path.chmod(0)
    with nobody(folder):
        found = command.said(capsys, "verify", folder)
        assert found.returncode == 1 and f"{path} cannot be read (Permission den" in found.stdout
        ended = command.said(capsys, "repair", folder)
        assert ended.returncode == 1 and "Nothing was repaired; make it readable" in ended.stderr
    path.chmod(0o644)
    assert content(folder) == before and list(verify(folder)) == []


@root
@pytest.mark.parametrize("mode", [0, 0o555])
@pytest.mark.parametrize("name", ["images", "shards", "run", "."])
def test_a_folder_that_may_not_be_used_is_named_at_once(folder, acts, capsys, name, mode):
    before = content(folder)
    with nobody(folder):
        (folder / name).chmod(mode)
        found = command.said(capsys, "verify", folder)
        assert found.returncode == (mode == 0 and name != "run"), found
        for act in acts.values():
            ended = command.said(capsys, *act)
            assert ended.returncode in (1, 2) and "Permission denied" in ended.stderr, ended
        (folder / name).chmod(0o755)
    assert content(folder) == before and list(verify(folder)) == []


@root
@pytest.mark.parametrize("name", ["run/lock", "run/ledger.sqlite"])
def test_a_run_that_is_not_ours_is_named(folder, acts, capsys, name):
    with nobody(folder):
        (folder / name).chmod(0)
        assert command.said(capsys, "verify", folder).returncode == 0
        for act in acts.values():
            ended = command.said(capsys, *act)
            assert ended.returncode == 2 and f"{folder / name} cannot be written" in ended.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a file that fails to be read")
@pytest.mark.parametrize("name", ["images/00000.tar", "shards/*.json"])
def test_a_disk_that_fails_costs_no_shard(folder, capsys, name):
    """The cable of a drive is loose, or a drive in the cloud has a bad day."""
    path = sorted(folder.glob(name))[0]
    before = content(folder)
    path.rename(folder.parent / "away")
    path.symlink_to("/proc/self/mem")  # whose first page nobody has
    found = command.said(capsys, "verify", folder)
    assert found.returncode == 1 and f"{path} cannot be read (" in found.stdout
    ended = command.said(capsys, "repair", folder)
    assert ended.returncode == 1 and "Nothing was repaired; make it readable" in ended.stderr
    (folder.parent / "away").replace(path)
    assert content(folder) == before and list(verify(folder)) == []


#: Fills the temporary folders, but leaves the tests' own tree where it is, be it in one of them.
_FULL = """
mount --rbind "$TREE" /mnt || exit
for each in /tmp /var/tmp /usr/tmp /dev/shm "$PWD"; do
    [ -d "$each" ] || continue
    mount -t tmpfs -o size=64k tmpfs "$each"
    case "$TREE/" in
        "$each"/*) mkdir -p "$TREE" && mount --rbind /mnt "$TREE" || exit ;;
    esac
    head -c 1M /dev/zero >"$each/full"
done 2>/dev/null
cd "$PWD"
exec "$@"
"""

_ALL = """
import sys
from cahlib.commands.cli import main
from pathlib import Path
folder, uids = sys.argv[1:]
for line in (["verify"], ["inspect"], ["repair"], ["purge", "--uids", uids], ["dedup", "--apply"]):
    assert main([line[0], folder, *line[1:]]) == 0, line
assert main(["demo", "--output", folder + "-demo"]) == 1
"""


def test_a_run_that_has_just_begun_is_not_nothing(tmp_path, capsys):
    (tmp_path / "uids").write_text("0" * 32)
    acts = [["verify"], ["purge", "--uids", tmp_path / "uids"], ["dedup"], ["inspect"], ["repair"]]
    with lock_dataset(tmp_path):
        for act in acts:
            ended = command.said(capsys, act[0], tmp_path, *act[1:])
            assert ended.returncode == 2, ended
            assert "holds no shard yet: a command is working on it" in ended.stderr
    assert "holds no dataset" in command.said(capsys, "verify", tmp_path).stderr


def test_one_command_at_a_time_changes_a_folder_whatever_it_is_called(
    folder, acts, capsys, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where the folder of a URL would be made
    before = content(folder)
    with lock_dataset(folder):
        for act in (
            *acts.values(), [*acts["run"], "--output", folder.as_uri()],
            ["repair", folder.as_uri()], ["repair", folder / "run/.."],
        ):  # fmt: skip
            ended = command.said(capsys, *act)
            assert ended.returncode == 2 and "another command is writing to" in ended.stderr, ended
        assert command.said(capsys, "verify", folder).returncode == 0
    assert content(folder) == before


@pytest.mark.parametrize("other", [["--contact", ""], ["--threshold", "0.99"]])
def test_a_run_that_is_refused_makes_nothing_and_says_no_more(folder, acts, capsys, other):
    shutil.rmtree(folder / "run")
    before = content(folder)
    ended = command.said(capsys, *acts["run"], "--replay", "", *other)
    assert ended.returncode == 2 and ended.stdout == "" and not (folder / "run").exists()
    assert content(folder) == before


@contextlib.contextmanager
def apart(folder):
    """A folder where no temporary folder is, with a copy of the dataset."""
    home = Path(tempfile.mkdtemp(prefix=".apart", dir=command.ROOT))
    try:
        shutil.copytree(folder, home / "set")
        yield home
    finally:
        shutil.rmtree(home)


@root
def test_no_command_needs_a_temporary_folder_but_a_run_which_says_so(folder, acts, tmp_path):
    """Each is on a full disk, and the folder in which it is typed as well."""
    with apart(folder) as home:
        line = ["unshare", "--mount", "bash", "-c", _FULL, "sh", sys.executable, "-c", _ALL]
        (home / "typed").mkdir()
        (home / "uids").write_text("0" * 32)
        line += [str(home / "set"), str(home / "uids")]
        env = {"TMPDIR": str(home / "absent"), "TREE": str(command.ROOT)}
        env = command.environment() | env
        ended = subprocess.run(line, cwd=home / "typed", env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert "emporary folder on this machine has free space" in ended.stderr
        assert list(verify(home / "set")) == []
