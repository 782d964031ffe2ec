"""Who may work under which nickname: the first to register it, with a secret, is its owner."""

from __future__ import annotations

import hmac
from typing import Any

from sqlalchemy import Connection, or_, select, update

from cahlib.ledger.database import Database
from cahlib.tracker import names
from cahlib.tracker.models import Owned
from cahlib.tracker.schema import people, teams

#: What is added to the nickname of an old client, which cannot show that the name is its own.
UNVERIFIED = " (unverified)"


def admit(
    database: Database, connection: Connection, nickname: str, proof: bytes | None, *, old: bool
) -> str:
    """Return the nickname under which a newcomer's work counts; raise Owned if it is another's.

    ``proof`` is the hash of the secret that he shows. ``old``: a client that has none to show.
    """
    look = names.folded(nickname)
    values = {"nickname": nickname, "folded": look, "secret": proof}
    fresh = database.insert(people).values(**values, scraped=0, done=0, pairs=0)
    connection.execute(fresh.on_conflict_do_nothing())
    alike = or_(people.c.folded == look, people.c.nickname == nickname)
    row: Any = connection.execute(
        select(people).where(alike).order_by(people.c.nickname != nickname)
    ).first()
    if row.banned:
        raise Owned(f"nickname: {row.nickname} was sent away.")
    if row.secret is None and proof and row.nickname == nickname:
        first = (people.c.nickname == nickname) & people.c.secret.is_(None)
        connection.execute(update(people).where(first).values(secret=proof))
        return nickname
    if row.secret is None and row.nickname == nickname:
        return nickname
    if row.secret and proof and hmac.compare_digest(row.secret, proof):
        return str(row.nickname)
    if old:
        return str(row.nickname)[: 40 - len(UNVERIFIED)] + UNVERIFIED
    alike_text = "" if row.nickname == nickname else f", which looks like {nickname},"
    raise Owned(
        f"nickname: {row.nickname}{alike_text} is somebody's here already; choose another, or if "
        "it is yours, set CAH_NICKNAME_SECRET to its secret."
    )


def enter_team(database: Database, connection: Connection, nickname: str, team: str) -> None:
    """Make a team a person's; of names that look alike, all are the one that was there first."""
    look = names.folded(team)
    fresh = database.insert(teams).values(name=team, folded=look)
    connection.execute(fresh.on_conflict_do_nothing())
    name = select(teams.c.name).where(teams.c.folded == look).scalar_subquery()
    connection.execute(update(people).where(people.c.nickname == nickname).values(team=name))


def ban(database: Database, nickname: str) -> None:
    """Let nobody join under a nickname any more."""
    with database.write() as connection:
        mine = people.c.nickname == nickname
        connection.execute(update(people).where(mine).values(banned=True))
