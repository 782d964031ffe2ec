"""The demo's world without what hangs for ever, so that its runs can wait for a busy machine.

The demo gives up after two seconds, or its hanging servers would hold it up; where each picture
must arrive, that is too soon for a machine that does much else.
"""

from dataclasses import replace

from cahlib import demo
from cahlib.core import config
from cahlib.core.config import Job
from cahlib.core.records import DropReason
from cahlib.demo import world
from cahlib.demo.web import Answer, Web
from tests.world.jobs import LIMIT


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


def job(output: str, web: Web, *, seconds: float = LIMIT) -> Job:
    """The demo's run, with this patience."""
    timeouts = {f"{what}_timeout": seconds for what in ("connect", "read", "total")}
    return config.replace_settings(demo.job(output, web), **timeouts)
