"""What an owner says about the use of an image: X-Robots-Tag, read by a table.

The header's form is Google's ("Robots meta tag … specifications"): directives separated by commas,
behind an optional user agent and a colon that scope what follows in that header. It does not
fetch, and it does not know robots.txt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

#: Each of these refuses the use that we make of an image; "none" is noindex with nofollow.
REFUSALS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})

#: Directives that have a value of their own behind a colon, which is no scope.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})

#: Whose directives bind us: what we call ourselves, and everybody.
_OURS = frozenset({"", "*", "cahlib"})


def refusal(headers: Iterable[str]) -> str | None:
    """The X-Robots-Tag header that refuses us, as it was served, or None."""
    for header in headers:
        if any(agent in _OURS and word in REFUSALS for agent, word in directives(header)):
            return header
    return None


def directives(header: str) -> Iterator[tuple[str, str]]:
    """The directives of one header with the user agent each is meant for ("": all), lower case."""
    agent = ""
    for part in header.lower().split(","):
        head, colon, tail = (piece.strip() for piece in part.partition(":"))
        if colon and head not in _VALUED:
            agent, head = head, tail
        yield agent, head
