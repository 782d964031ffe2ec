"""Checks of what a run needs beyond valid settings, with the same messages at every door."""

from __future__ import annotations

import re

from cahlib.core.config import Crawl, Job
from cahlib.core.errors import ConfigError, MissingSetting

#: The form of a web page's URL or of an e-mail address.
_CONTACT = re.compile(r"https?://[^\s/@]+\S*|(mailto:)?[^\s@/]+@[^\s@/]+\.[^\s@/]+")


def require_contact(job: Job) -> None:
    """Raise ConfigError without a contact for site owners."""
    if not (job.download.contact or job.download.replay):
        raise MissingSetting(
            "contact: give a web page or an e-mail address where site owners can reach you; no "
            "image is requested without it."
        )
    if job.download.contact and not _CONTACT.fullmatch(job.download.contact.strip()):
        raise ConfigError(
            f"contact: {job.download.contact!r} is neither a web page (https://…) nor an e-mail "
            "address; site owners must be able to reach you."
        )


def require_nickname(job: Job) -> None:
    """Raise MissingSetting without a nickname."""
    if not job.nickname.strip():
        raise MissingSetting("nickname: choose one; leaderboards and the dataset card show it.")


def require_source(crawl: Crawl) -> None:
    """Raise ConfigError unless there is one source to read: a crawl, or tables of links."""
    if crawl.crawl and crawl.links:
        raise ConfigError("links: give a crawl or tables of links, not both.")
    if not (crawl.crawl or crawl.links):
        raise MissingSetting(
            "crawl: say what to read: a crawl's name (CC-MAIN-2024-10), or a WAT file by path, "
            "glob or URL; or tables of links, with --links."
        )
