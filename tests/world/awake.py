"""The demo's world without what hangs for ever, so that its runs can wait for a busy machine.

The demo gives up after two seconds, or its hanging servers would hold it up; where each picture
must arrive, that is too soon for a machine that does much else.
"""

from dataclasses import replace
from threading import Event
from urllib.parse import urlsplit

from cahlib import demo
from cahlib.core import config
from cahlib.core.config import Job
from cahlib.core.records import DropReason
from cahlib.demo import world
from cahlib.demo.web import Answer, Web
from tests.world.jobs import LIMIT

#: The timeouts of a download in seconds, as any machine keeps them where nothing hangs for ever.
TIMEOUTS = {f"{what}_timeout": 15.0 for what in ("connect", "read", "total")}


def build() -> world.World:
    """The demo's world, in which servers that would not answer say 404."""
    shown = world.build()
    gone = Answer(status=404)
    exhibits = [
        replace(each, reason=DropReason.HTTP_4XX, answers=dict.fromkeys(each.answers, gone))
        if each.reason is DropReason.TIMEOUT
        else each
        for each in shown.exhibits
    ]
    answers = {url: answer for each in exhibits for url, answer in each.answers.items()}
    return replace(shown, exhibits=exhibits, answers={**shown.answers, **answers})


class Held(Web):
    """Such a web, which keeps a picture back until it may ``go``: its shard stays in work."""

    def __init__(self, shown: world.World) -> None:
        crawl = Answer(body=shown.wat, type="application/gzip")
        super().__init__({demo.WAT_PATH: crawl, **shown.answers})
        good = [each for each in shown.exhibits if each.reason is None]
        self.kept_back = {urlsplit(url).path for url in good[-1].answers}
        self.go = Event()

    def answer(self, request):
        if urlsplit(request.url).path in self.kept_back:
            self.go.wait()
        return super().answer(request)


def endless(shown: world.World) -> world.World:
    """The world with its traps, in which what is slow never ends, whatever the patience."""
    for_ever = {
        url: replace(answer, pace=3600)
        for url, answer in shown.answers.items()
        if isinstance(answer, Answer) and answer.pace
    }
    return replace(shown, answers={**shown.answers, **for_ever})


def job(output: str, web: Web, *, seconds: float = LIMIT) -> Job:
    """The demo's run, with this patience."""
    timeouts = {f"{what}_timeout": seconds for what in ("connect", "read", "total")}
    return config.replace_settings(demo.job(output, web), **timeouts)
