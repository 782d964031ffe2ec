"""A nickname is the first one's who shows its secret, and no other name looks like it."""

import pytest
from sqlalchemy import select

from cahlib.commands.cli import main
from cahlib.core.secret_store import nickname_secret
from cahlib.tracker import statistics
from cahlib.tracker.models import (
    InvalidRequest,
    NicknameTaken,
    ShardResult,
    UnknownWorker,
    WorkerKind,
)
from cahlib.tracker.nicknames import fold, normalize_nickname
from cahlib.tracker.schema import people

ZALGO = "Z\u0351\u036b\u0343a"


def test_a_nickname_is_the_first_ones_who_shows_its_secret(lease_store, fill, database):
    fill(3)
    lease_store.register("ann", WorkerKind.HYBRID, legacy=True)  # who cannot show one
    for _ in range(2):
        lease_store.register("ann", WorkerKind.CPU, nickname_secret="hers")
    for other in ("his", ""):
        with pytest.raises(NicknameTaken, match="CAH_NICKNAME_SECRET"):
            lease_store.register("ann", WorkerKind.HYBRID, nickname_secret=other)
    worker, secret = lease_store.register("ann", WorkerKind.HYBRID, legacy=True)
    assert worker.nickname == "ann (unverified)"
    lease_store.complete(secret, lease_store.lease(secret).number, ShardResult(pairs=3))
    _, secret = lease_store.register("ann", WorkerKind.HYBRID, nickname_secret="hers")
    lease_store.complete(secret, lease_store.lease(secret).number, ShardResult(pairs=5))
    shown = [
        (one["nickname"], one["pairs"], one["verified"])
        for one in statistics.list_leaders(database)
    ]
    assert shown == [("ann", 5, True), ("ann (unverified)", 3, False)]
    with database.read() as connection:
        assert b"hers" not in connection.execute(select(people.c.secret)).scalars().all()


@pytest.mark.parametrize("other", ["Ann", "\u0430nn", "\uff21nn", "a nn"])
def test_a_name_that_looks_like_anothers_is_refused(lease_store, other):
    lease_store.register("ann", WorkerKind.HYBRID, nickname_secret="hers")
    with pytest.raises(NicknameTaken, match="looks like"):
        lease_store.register(normalize_nickname(other), WorkerKind.HYBRID, nickname_secret="his")
    assert (
        lease_store.register(other, WorkerKind.HYBRID, nickname_secret="hers")[0].nickname == "ann"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lan", "Ian"),
        ("0live", "olive"),
        ("modern", "rnodern"),
        ("\u0441\u043e\u0441\u043e", "coco"),
    ],
)
def test_names_that_look_alike_are_one(one, other):
    assert fold(one) == fold(other)


@pytest.mark.parametrize(
    "one",
    [
        "Jos\u00e9",
        "\u674e\u96f7",
        "\u0418\u0432\u0430\u043d",
        "o\u0323\u0301",
        "\u0e01\u0e35\u0e48",
        "ann-2 \U0001f980",
    ],
)
def test_names_of_all_languages_are_taken(one):
    assert fold(normalize_nickname(one)) != fold("ann")


@pytest.mark.parametrize(
    "one",
    [
        "a\u3164b",
        "a\u200bb",
        "\u115f",
        "a\u2800",
        "a\ufe0f",
        "a\u034f",
        "a\u00adb",
        "a\U000e0041",
        "a\u2028b",
        "a\tb",
    ],
)
def test_letters_that_nobody_sees_are_refused(one):
    with pytest.raises(InvalidRequest, match="invisible"):
        normalize_nickname(one)


@pytest.mark.parametrize("one", [ZALGO, "ann (Unverified)", "x" * 41, "", "\u2000"])
def test_names_that_are_none_are_refused(one):
    with pytest.raises(InvalidRequest):
        normalize_nickname(one)


def test_who_is_sent_away_by_nickname_does_not_come_back(lease_store, fill, url, database, capsys):
    fill(2)
    secrets = [
        lease_store.register("eve", WorkerKind.HYBRID, nickname_secret="his")[1] for _ in range(2)
    ]
    for secret in secrets:
        lease_store.complete(secret, lease_store.lease(secret).number, ShardResult(pairs=1))
    assert main(["tracker", "expel", "eve", "--undo", "--database", url]) == 0
    assert "2 workers were expelled; 2 shards will be done again." in capsys.readouterr().out
    with pytest.raises(UnknownWorker):
        lease_store.lease(secrets[0])
    with pytest.raises(NicknameTaken, match="was expelled"):
        lease_store.register("Eve", WorkerKind.HYBRID, nickname_secret="his")


def test_the_secret_of_a_nickname_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CAH_STATE", str(tmp_path / "state"))
    mine = nickname_secret("https://tracker.example", "ann", tmp_path / "dataset")
    assert nickname_secret("https://tracker.example", "ann", tmp_path / "other") == mine
    assert nickname_secret("https://tracker.example", "bob", tmp_path / "dataset") != mine
    (path, _) = (tmp_path / "state" / "nicknames").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("CAH_NICKNAME_SECRET", "given")
    assert nickname_secret("https://tracker.example", "ann", tmp_path / "dataset") == "given"


def test_a_team_is_the_one_that_was_there_first(lease_store, database):
    for nickname, team in (("ann", "Lions"), ("bob", "lions"), ("carl", "li\u043ens"), ("dan", "")):
        lease_store.register(nickname, WorkerKind.HYBRID, nickname_secret=nickname, team=team)
    with database.read() as connection:
        found = dict(connection.execute(select(people.c.nickname, people.c.team)).all())
    assert found == {"ann": "Lions", "bob": "Lions", "carl": "Lions", "dan": None}
    lease_store.register(
        "ann", WorkerKind.CPU, nickname_secret="ann"
    )  # which says nothing of teams
    lease_store.register("bob", WorkerKind.CPU, nickname_secret="bob", team="Bears")
    with database.read() as connection:
        found = connection.execute(select(people.c.team).order_by(people.c.nickname)).scalars()
        assert found.all() == ["Lions", "Bears", "Lions", None]
