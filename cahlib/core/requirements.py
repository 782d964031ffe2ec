"""What a run needs beyond settings that are well-formed: the same sentences at every door."""

from __future__ import annotations

import re

from cahlib.core.config import Crawl, Job
from cahlib.core.errors import ConfigError, MissingSetting

#: A web page or an e-mail address, as far as its form can tell.
_CONTACT = re.compile(r"https?://[^\s/@]+\S*|(mailto:)?[^\s@/]+@[^\s@/]+\.[^\s@/]+")


def introduced(job: Job) -> None:
    """Refuse to ask the web for anything without a word on who asks."""
    if not (job.download.contact or job.download.replay):
        raise MissingSetting(
            "contact: give a web page or an e-mail address where site owners reach you; images "
            "are asked for with it, and not without."
        )
    if job.download.contact and not _CONTACT.fullmatch(job.download.contact.strip()):
        raise ConfigError(
            f"contact: {job.download.contact!r} is neither a web page (https://…) nor an e-mail "
            "address; site owners must be able to reach you."
        )


def named(job: Job) -> None:
    """Refuse work in a nickname's name without one."""
    if not job.nickname.strip():
        raise MissingSetting("nickname: choose one; leaderboards and the dataset's card show it.")


def reading(crawl: Crawl) -> None:
    """Refuse what names nothing to read, or two things."""
    if crawl.crawl and crawl.links:
        raise ConfigError("links: give a crawl or tables of links, not both.")
    if not (crawl.crawl or crawl.links):
        raise MissingSetting(
            "crawl: say what to read: a crawl's name (CC-MAIN-2024-10), or a WAT file by path, "
            "glob or URL; or tables of links, with --links."
        )
