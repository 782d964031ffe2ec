"""A run's state in a file: whole at all times, small, and without pictures at the end."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from cahlib.core import status
from cahlib.core.errors import RunError
from cahlib.core.progress import Snapshot, ignore_progress
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.dataset.write.gallery import LatestPairs
from tests.world.judged import judged


@pytest.fixture
def path(tmp_path):
    return tmp_path / "live.json"


def snapshot(elapsed=1.0, **values):
    stats = Stats()
    stats.left[Stage.JUDGE], stats.dropped[DropReason.TIMEOUT] = 7, 3
    rates = {"links": elapsed, "images": 2.0, "judged": 2.0, "pairs": 0.5}
    given = {"shards": 4, "done": 1, "failed": 0, "finished": False, "busy": 0.25}
    return Snapshot(
        elapsed=elapsed, stats=stats, rates=rates, queues={"parcels": (1, 2)}, **given | values
    )


def test_what_a_run_tells_can_be_read_from_elsewhere(path):
    with status.record_status(path, ignore_progress) as listener:
        assert status.read_status(path)["state"] == "starting"
        listener(snapshot(latest=({"jpeg": "picture"},)))
        found = status.read_status(path)
        assert (found["state"], found["done"], found["queues"]) == (
            "running",
            1,
            {"parcels": [1, 2]},
        )
        assert status.status_stats(found).dropped == {DropReason.TIMEOUT: 3} and status.is_alive(
            found
        )
        assert "picture" in str(found)
    found = status.read_status(path)
    assert found["state"] == "ended" and "picture" not in str(found)


def test_a_tally_can_be_read_while_it_is_filled():
    class Filled(Counter):
        """As if another thread met a new reason whenever somebody looks at them all."""

        def items(self):
            for each in super().items():
                self[DropReason.DNS] += 1
                yield each

    stats = Stats(dropped=Filled({DropReason.TLS: 1, DropReason.TIMEOUT: 2}))
    stats.entered[Stage.FETCH] = 4
    assert (stats.done(Stage.FETCH), stats.unaccounted(Stage.FETCH)) == (3, 1)
    assert Stats.from_dict(stats.as_dict()) == stats


def test_how_a_run_failed_is_told(path):
    with pytest.raises(RunError), status.record_status(path, ignore_progress):
        raise RunError("the disk is full; make room.")
    assert status.read_status(path)["sentence"] == "the disk is full; make room."
    with (
        pytest.raises(ZeroDivisionError),
        status.record_status(path, ignore_progress),
    ):
        _ = 1 / 0
    assert "ZeroDivisionError" in status.read_status(path)["sentence"]


def test_the_file_stays_small_and_keeps_the_whole_time(path):
    with status.record_status(path, ignore_progress) as listener:
        for second in range(600):
            listener(snapshot(elapsed=float(second)))
    points = status.read_status(path)["history"]
    assert 100 < len(points) <= 240 and points[0][0] == 0 and points[-1][0] > 585
    steps = [later[0] - sooner[0] for sooner, later in zip(points, points[1:], strict=False)]
    assert max(steps) <= 3 * min(steps)


def test_a_stop_is_told_and_a_full_disk_ends_nothing(path):
    with status.record_status(path, ignore_progress, stopping=lambda: True) as listener:
        listener(snapshot())
        assert status.read_status(path)["state"] == "stopping"
        path.with_name(f".live.json.{os.getpid()}.part").mkdir()  # nothing can be written any more
        listener(snapshot())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_what_is_no_such_file_is_as_none(path, text):
    path.write_text(text)
    assert status.read_status(path) == {} and not status.is_alive(status.read_status(path))


def test_a_process_is_known_even_if_its_number_is_used_again():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = status.process_identity(process.pid)
    assert status.is_alive(json.loads(json.dumps(known)))
    assert not status.is_alive(known | {"pid": os.getpid()})
    process.communicate(b"\n")
    assert not status.is_alive(known)


def test_the_latest_pairs_are_small_and_unsafe_ones_are_clear_only_apart():
    latest = LatestPairs()
    for number in range(30):
        latest.offer(judged(number))
        latest.offer(judged(100 + number, reason=DropReason.DISSIMILAR, nsfw="NSFW"))
        latest.offer(judged(200 + number, reason=DropReason.MINOR, nsfw="NSFW"))
        shown = latest.shown()
    assert [each["kept"] for each in shown] == [True] * 8 + [False] * 8
    assert shown[0]["uid"] == judged(29).image.candidate.uid
    for each in shown:
        assert (each["clear"] != "") == (each["nsfw"] == "NSFW")
        assert each["clear"] != each["jpeg"] and len(each["jpeg"]) < 20_000
    json.dumps(shown)
