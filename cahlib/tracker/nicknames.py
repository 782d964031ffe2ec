"""Nicknames of people and names of teams: who may use which, and which look alike."""

from __future__ import annotations

import hmac
import unicodedata
from typing import Any

import regex
from sqlalchemy import Connection, or_, select, update

from cahlib.ledger.database import Database, insert_into
from cahlib.tracker.models import InvalidRequest, NicknameTaken
from cahlib.tracker.schema import people, teams

#: Added to the nickname of a legacy client, which cannot prove that it owns the name.
UNVERIFIED = " (unverified)"

#: Invisible characters: by Unicode's list, by category, and blanks that are letters or symbols.
_INVISIBLE = regex.compile(
    r"[\p{Default_Ignorable_Code_Point}\p{C}\p{Z}\u2800\U0001D159--[ ]]", regex.V1
)
#: More marks on a letter than any language has; they would cover the lines above and below.
_MARKS = regex.compile(r"\p{M}{3}")

#: Letters that look like Latin ones, after folding case and compatibility.
_LOOKALIKES = {
    ord(pair[0]): pair[1]
    for pair in (
        "аa вb сc ԁd еe ғf ԍg һh нh іi јj кk ӏl мm пn оo рp ԛq гr ѕs тt цu ѵv ԝw хx уy "  # Cyrillic
        "αa βb ϲc εe ηn ιi κk νv οo ρp τt υu χx γy ωw "  # Greek
        "օo ոn սu հh ցg զq յj "  # Armenian
        "ıi ɑa ɡg ɩi ʟl 0o 1l |l"
    ).split()
}


def normalize_nickname(text: str, what: str = "nickname") -> str:
    """Return a nickname or a team's name as it is stored; raise InvalidRequest."""
    name = " ".join(unicodedata.normalize("NFKC", text[:1000]).strip(" ").split(" "))
    if not 1 <= len(name) <= 40:
        raise InvalidRequest(f"{what}: choose a name of 1 to 40 characters.")
    if _INVISIBLE.search(name):
        raise InvalidRequest(f"{what}: invisible characters are not allowed.")
    if _MARKS.search(unicodedata.normalize("NFD", name)):
        raise InvalidRequest(f"{what}: a letter may have at most two marks.")
    if name.casefold().endswith("(unverified)"):
        raise InvalidRequest(f"{what}: the ending (unverified) is reserved; choose another name.")
    return name


def fold(name: str) -> str:
    """Return a form that is the same for names that people take for each other."""
    small = unicodedata.normalize("NFKC", name).casefold().translate(_LOOKALIKES)
    # a capital I looks like an l; others run together in a narrow typeface
    return small.replace("i", "l").replace("rn", "m").replace("vv", "w").replace(" ", "")


def claim_nickname(
    connection: Connection, nickname: str, secret_hash: bytes | None, *, legacy: bool
) -> str:
    """Return the nickname under which a worker's shards count; raise NicknameTaken.

    ``secret_hash`` is of the nickname's secret. ``legacy``: the client cannot send one.
    """
    look = fold(nickname)
    values = {"nickname": nickname, "folded": look, "secret": secret_hash}
    fresh = insert_into(connection, people).values(**values, scraped=0, done=0, pairs=0)
    connection.execute(fresh.on_conflict_do_nothing())
    alike = or_(people.c.folded == look, people.c.nickname == nickname)
    row: Any = connection.execute(
        select(people).where(alike).order_by(people.c.nickname != nickname)
    ).first()
    if row.banned:
        raise NicknameTaken(f"nickname: {row.nickname} was expelled from this tracker.")
    if row.secret is None and secret_hash and row.nickname == nickname:
        first = (people.c.nickname == nickname) & people.c.secret.is_(None)
        connection.execute(update(people).where(first).values(secret=secret_hash))
        return nickname
    if row.secret is None and row.nickname == nickname:
        return nickname
    if row.secret and secret_hash and hmac.compare_digest(row.secret, secret_hash):
        return str(row.nickname)
    if legacy:
        return str(row.nickname)[: 40 - len(UNVERIFIED)] + UNVERIFIED
    alike_text = "" if row.nickname == nickname else f", which looks like {nickname},"
    raise NicknameTaken(
        f"nickname: {row.nickname}{alike_text} is taken; choose another, or if it is yours, set "
        "CAH_NICKNAME_SECRET to its secret."
    )


def join_team(connection: Connection, nickname: str, team: str) -> None:
    """Set a person's team; of names that look alike, the first is used for all."""
    look = fold(team)
    fresh = insert_into(connection, teams).values(name=team, folded=look)
    connection.execute(fresh.on_conflict_do_nothing())
    name = select(teams.c.name).where(teams.c.folded == look).scalar_subquery()
    connection.execute(update(people).where(people.c.nickname == nickname).values(team=name))


def ban(database: Database, nickname: str) -> None:
    """Let no worker join under a nickname."""
    with database.write() as connection:
        mine = people.c.nickname == nickname
        connection.execute(update(people).where(mine).values(banned=True))
