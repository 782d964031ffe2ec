"""What no caption may hold, found independently of how cahlib names it."""

from __future__ import annotations

import unicodedata

#: Those with the property Bidi_Control.
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
#: Those that have no width: soft hyphens and word joiners, fillers, signs about other signs.
UNSEEN = TURNING | frozenset(
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060\u2061\u2062\u2063\u2064\u2065"
    "\u206a\u206b\u206c\u206d\u206e\u206f\u3164\ufeff\uffa0\ufff9\ufffa\ufffb"
)
#: Letters that are tagged: seen in no text, but for the tags of a flag.
TAGS = frozenset(map(chr, range(0xE0000, 0xE1000)))


def is_forbidden(letter: str) -> bool:
    """Whether it is a control, a surrogate, for private use, or never a character.

    None of the first three has changed since 1996.
    """
    return (
        unicodedata.category(letter) in ("Cc", "Cs", "Co")
        or "\ufdd0" <= letter <= "\ufdef"
        or ord(letter) % 0x10000 >= 0xFFFE
    )
