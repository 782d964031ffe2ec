"""Domains that never answer cost a run a few tries, not a few in each shard."""

import time
from collections import Counter
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from cahlib.core.config import Download, replace_settings
from cahlib.core.records import DropReason
from cahlib.demo.web import Answer
from cahlib.fetch.dead_domains import DeadDomains
from cahlib.fetch.politeness import Politeness
from tests.world import small

pytest.importorskip("open_clip", reason="a run needs: pip install 'cahlib[gpu]'")

from cahlib.dataset.manifest import read_manifests
from cahlib.run.pipeline import run


def test_two_shards_must_agree():
    dead = DeadDomains([("dead.com", "ill.com"), ("dead.com",)])
    assert dead.merged_with(("mine.com",)) == ("mine.com", "dead.com")
    dead.add(("ill.com", "new.com"))
    assert dead.merged_with(()) == ("dead.com", "ill.com")


def test_who_is_left_alone_is_not_asked():
    politeness = Politeness(Download(skipped_domains=("dead.com",)))
    assert politeness.is_skipped("dead.com") and not politeness.is_skipped("alive.com")


class Here:
    """An engine that scrapes when it is asked for a result, and notes what was submitted."""

    slots = 1

    def __init__(self):
        self.waiting, self.skipped = [], []

    def __len__(self):
        return len(self.waiting)

    def submit(self, key, function, *arguments, limit):
        self.waiting.append((key, function, arguments, limit))
        self.skipped.append(arguments[2].skipped_domains)

    def take(self, *, timeout):
        if not self.waiting:
            time.sleep(0.05)
            return None
        key, function, arguments, limit = self.waiting.pop(0)
        return key, function(*arguments, limit=limit, report=lambda _: None)

    def reports(self):
        return []


class WithADeadHost(small.Pictures):
    """Of its seven hosts one takes every question and never answers."""

    def answer(self, request):
        if urlsplit(request.url).hostname == "host0.dead.com":
            self.asked += 1
            return Answer(delay=60)
        return super().answer(request)

    asked = 0


def test_later_shards_and_runs_ask_a_dead_domain_no_more(tmp_path):
    crawl = small.write(tmp_path / "crawl", files=2, links=21, dead="dead.com")
    engines = []

    @contextmanager
    def scraping(job, *, stop, swarm_status):
        engines.append(Here())
        yield engines[-1], tmp_path / "dataset/run/parcels"

    with WithADeadHost() as web:
        job = replace_settings(
            small.job(crawl, tmp_path / "dataset", web), read_timeout=3, total_timeout=6
        )
        assert run(replace_settings(job, shards=2), scraping=scraping).shards.done == 2
        first = web.asked
        assert run(replace_settings(job, shards=4), scraping=scraping).shards.done == 4
        assert web.asked == first
    assert [engine.skipped for engine in engines] == [[(), ()], [("dead.com",)] * 2]
    lost = sum((each.stats.dropped for each in read_manifests(tmp_path / "dataset")), Counter())
    assert (lost[DropReason.LEFT_ALONE], lost[DropReason.NO_ROBOTS]) == (2 * 3, 2 * 3)
