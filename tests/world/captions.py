"""What no caption may hold, found independently of how cahlib names it."""

from __future__ import annotations

import unicodedata

#: Of all code points: controls, surrogates, private use (none of these three has changed since
#: 1996), and what will never be a character.
FORBIDDEN = frozenset(
    letter
    for letter in map(chr, range(0x110000))
    if unicodedata.category(letter) in ("Cc", "Cs", "Co")
    or "\ufdd0" <= letter <= "\ufdef"
    or ord(letter) % 0x10000 >= 0xFFFE
)
#: Those with the property Bidi_Control.
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
