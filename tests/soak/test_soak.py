"""The destroyer in its smallest size, and that its checks find what is wrong."""

import random
import shutil
from types import SimpleNamespace

import pytest

from tests.soak.arena import arena
from tests.soak.destroyer import Found, Series, destroy
from tests.soak.launches import Ended
from tests.soak.state import state, uids
from tests.world import judged

pytestmark = pytest.mark.timeout(300)


def test_a_dataset_comes_back():
    with arena(("folder",), wired=False) as made:
        series, fault = destroy(made, "1", 2)
    assert not fault, "\n".join([fault, *series.told])
    assert sum(series.events.values()) >= 2


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "set"
    for number in range(2):
        judged.write(folder, count=5, first=100 * number, shard=f"s-{number}")
    return folder


def series(folder, happens, code=0, said=""):
    """A series whose command does something else than it should."""

    def launch(_):
        happens(folder)
        return Ended(code=code, said=said)

    sound = state(folder)
    place = SimpleNamespace(
        now=folder.parent, launch=launch, keys={id: uids(folder, id) for id in sound.whole},
        place=lambda mode: folder, folder=lambda mode: folder,
    )  # fmt: skip
    made = Series(place, random.Random(1))
    made.mode, made.strange = "folder", False
    return made


def nothing(folder):
    pass


def lose(folder):
    (folder / "images/s-1.tar").unlink()


def lose_all(folder):
    for path in folder.rglob("*s-1*"):
        path.unlink()


def do_again(folder):
    """The same pairs, in another manifest."""
    judged.write(folder, count=5, first=100, shard="s-1")


def do_otherwise(folder):
    judged.write(folder, count=10, first=100, shard="s-1")


def mix_in(folder):
    judged.write(folder, count=5, first=500, shard="t-0")


@pytest.mark.parametrize(
    "happens, code, said, found",
    [
        (nothing, 0, "", ""),
        (lose, 1, "cah: a sentence", "s-1 .* was whole, and is not as it was: images/s-1.tar"),
        (lose_all, 1, "cah: a sentence", "s-1 .* was whole, .* it is gone"),
        (do_again, 0, "", "s-1 .* was whole, .* replaced"),
        (do_otherwise, 0, "", "s-1 .* was whole, .* replaced"),
        (mix_in, 0, "", "t-0, of another dataset"),
        (nothing, 1, "Traceback", "no sentence"),
        (nothing, -11, "", "no sentence"),
        (nothing, 1, "", "says nothing"),
        (nothing, 2, "cah: choose another folder", "the same command is refused"),
    ],
)
def test_what_a_command_must_not_do_is_found(dataset, happens, code, said, found):
    made = series(dataset, happens, code, said)
    if not found:
        made._do(("run",))
        return
    with pytest.raises(Found, match=found):
        made._do(("run",))


def test_an_exit_of_0_with_shards_that_lack_is_found(dataset):
    made = series(dataset, nothing)
    lose_all(dataset)
    with pytest.raises(Found, match="exit 0 although shards lack: .*s-1"):
        made._do(("run",))


def test_a_shard_with_other_pairs_is_found(dataset):
    made = series(dataset, do_otherwise)
    lose_all(dataset)
    with pytest.raises(Found, match="not the pairs that it has undisturbed"):
        made._do(("run",))


@pytest.mark.parametrize("name", ["images/s-0.tar", "shards/s-1.json", "metadata/new.parquet"])
def test_what_is_wrong_with_a_dataset_is_seen_without_its_own_code(dataset, name):
    sound = state(dataset)
    assert sound.whole.keys() == {"s-0", "s-1"} and not (sound.broken or sound.stray)
    path = dataset / name
    data = path.read_bytes() if path.exists() else b""
    path.write_bytes(data[:-1] + b"?")
    wrong = state(dataset)
    assert wrong.broken or wrong.stray
    assert ("s-0" in wrong.hidden) == (name == "images/s-0.tar")
    shutil.rmtree(dataset / "images")
    assert not state(dataset).hidden
