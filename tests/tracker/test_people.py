"""A nickname is the first one's who shows its secret, and no other name looks like it."""

import pytest
from sqlalchemy import select

from cahlib.commands.cli import main
from cahlib.core.secret_store import nickname_secret
from cahlib.ledger.schema import people
from cahlib.tracker import names, statistics
from cahlib.tracker.models import Invalid, Kind, Owned, Result, Unknown

ZALGO = "Z\u0351\u036b\u0343a"


def test_a_nickname_is_the_first_ones_who_shows_its_secret(crowd, fill, database):
    fill(3)
    crowd.register("ann", Kind.HYBRID, old=True)  # who cannot show one
    for _ in range(2):
        crowd.register("ann", Kind.CPU, proof="hers")
    for proof in ("his", ""):
        with pytest.raises(Owned, match="CAH_NICKNAME_SECRET"):
            crowd.register("ann", Kind.HYBRID, proof=proof)
    worker, secret = crowd.register("ann", Kind.HYBRID, old=True)
    assert worker.nickname == "ann (unverified)"
    crowd.complete(secret, crowd.lease(secret).number, Result(pairs=3))
    _, secret = crowd.register("ann", Kind.HYBRID, proof="hers")
    crowd.complete(secret, crowd.lease(secret).number, Result(pairs=5))
    shown = [
        (one["nickname"], one["pairs"], one["verified"]) for one in statistics.leaders(database)
    ]
    assert shown == [("ann", 5, True), ("ann (unverified)", 3, False)]
    with database.read() as connection:
        assert b"hers" not in connection.execute(select(people.c.secret)).scalars().all()


@pytest.mark.parametrize("other", ["Ann", "\u0430nn", "\uff21nn", "a nn"])
def test_a_name_that_looks_like_anothers_is_refused(crowd, other):
    crowd.register("ann", Kind.HYBRID, proof="hers")
    with pytest.raises(Owned, match="looks like"):
        crowd.register(names.nickname(other), Kind.HYBRID, proof="his")
    assert crowd.register(other, Kind.HYBRID, proof="hers")[0].nickname == "ann"


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
    assert names.folded(one) == names.folded(other)


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
    assert names.folded(names.nickname(one)) != names.folded("ann")


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
    with pytest.raises(Invalid, match="invisible"):
        names.nickname(one)


@pytest.mark.parametrize("one", [ZALGO, "ann (Unverified)", "x" * 41, "", "\u2000"])
def test_names_that_are_none_are_refused(one):
    with pytest.raises(Invalid):
        names.nickname(one)


def test_who_is_sent_away_by_nickname_does_not_come_back(crowd, fill, url, database, capsys):
    fill(2)
    secrets = [crowd.register("eve", Kind.HYBRID, proof="his")[1] for _ in range(2)]
    for secret in secrets:
        crowd.complete(secret, crowd.lease(secret).number, Result(pairs=1))
    assert main(["tracker", "expel", "eve", "--undo", "--database", url]) == 0
    assert "2 workers are sent away; 2 shards are to do again." in capsys.readouterr().out
    with pytest.raises(Unknown):
        crowd.lease(secrets[0])
    with pytest.raises(Owned, match="was sent away"):
        crowd.register("Eve", Kind.HYBRID, proof="his")


def test_the_secret_of_a_nickname_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CAH_STATE", str(tmp_path / "state"))
    mine = nickname_secret("https://tracker.example", "ann", tmp_path / "dataset")
    assert nickname_secret("https://tracker.example", "ann", tmp_path / "other") == mine
    assert nickname_secret("https://tracker.example", "bob", tmp_path / "dataset") != mine
    (path, _) = (tmp_path / "state" / "nicknames").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("CAH_NICKNAME_SECRET", "given")
    assert nickname_secret("https://tracker.example", "ann", tmp_path / "dataset") == "given"


def test_a_team_is_the_one_that_was_there_first(crowd, database):
    for nickname, team in (("ann", "Lions"), ("bob", "lions"), ("carl", "li\u043ens"), ("dan", "")):
        crowd.register(nickname, Kind.HYBRID, proof=nickname, team=team)
    with database.read() as connection:
        found = dict(connection.execute(select(people.c.nickname, people.c.team)).all())
    assert found == {"ann": "Lions", "bob": "Lions", "carl": "Lions", "dan": None}
    crowd.register("ann", Kind.CPU, proof="ann")  # which says nothing of teams
    crowd.register("bob", Kind.CPU, proof="bob", team="Bears")
    with database.read() as connection:
        found = connection.execute(select(people.c.team).order_by(people.c.nickname)).scalars()
        assert found.all() == ["Lions", "Bears", "Lions", None]
