"""A CPU volunteer that cannot go on ends, and leaves the crawl as it was."""

import pytest

from cahlib.config import Job
from cahlib.demo.web import Answer, Web
from cahlib.errors import RunError
from cahlib.records import Shard
from cahlib.tracker import board, intake
from cahlib.tracker.app import create
from cahlib.tracker.database import Database
from cahlib.tracker.limits import Limits
from cahlib.tracker.migrate import migrate
from cahlib.tracker.rules import Rules
from cahlib.tracker.service import Settings
from cahlib.volunteer import volunteer
from tests.world.trackers import serving

ANY = Limits(address=0, worker=0, newcomers=0)


def test_who_is_banned_asks_no_more_and_no_shard_is_blamed(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'tracker.sqlite'}")
    migrate(database)
    rules = Rules(upload=f"file://{tmp_path / 'parcels'}")
    app = create(Settings(database=str(database.engine.url), rules=rules, limits=ANY))
    paths = [f"/{n}.warc.wat.gz" for n in range(5)]
    with Web({path: Answer(status=403) for path in paths}) as web, serving(app) as tracker:
        intake.add(
            database,
            [
                Shard(id=f"w{n}-{half}", url=f"http://{web.address}{path}", half=half)
                for n, path in enumerate(paths)
                for half in (0, 1)
            ],
        )
        job = Job.from_values(
            {
                "tracker": tracker,
                "nickname": "ann",
                "contact": "ann@example.org",
                "output": str(tmp_path / "ann"),
                "workers": "1",
            }
        )
        with pytest.raises(RunError, match="403"):
            volunteer(job, tick=0.1)
    assert len(web.requests) == 1
    assert {(row["state"], row["error"]) for row in board.export(database)} == {("todo", None)}
    database.close()
