"""Workers, the server and PostgreSQL are killed, a fifth of the workers lies: the books are right.

It earns its half minute: no smaller test has all of these happen at the same time.
"""

from __future__ import annotations

import pytest

from tests.soak.community import community
from tests.world import postgres as servers

SHARDS = 400


def at_shares(told):
    for share in (0.1, 0.3, 0.5):
        yield lambda share=share: len(told.done) > share * SHARDS


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_every_shard_is_done_once_whatever_is_killed(kind, tmp_path):
    if kind == "sqlite":
        url, postgres = f"sqlite:///{tmp_path / 'tracker.sqlite'}", None
        community(url, postgres, count=SHARDS, seed=1, kills=at_shares, finish=True)
        return
    if reason := servers.missing():
        pytest.skip(reason)
    with servers.postgres() as postgres:
        url = postgres.create("chaos")
        community(url, postgres, count=SHARDS, seed=1, kills=at_shares, finish=True)
