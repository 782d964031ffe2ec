"""Personal data in captions: e-mail addresses, telephone, card and passport numbers.

Found by their forms alone, so a rare one is missed and a rare number taken for one; card numbers
have to pass their check digit (Luhn, ISO/IEC 7812-1). It does not know names or faces.
"""

from __future__ import annotations

import re

_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?!\w)")
_PASSPORT = re.compile(
    r"\bpassport\W{0,3}(?:(?:no|nr|number|num)\W{0,3})?([a-z]{0,2}\d{6,9})\b", re.IGNORECASE
)
_CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d.-]?\d)")
#: With the sign of an international number, or grouped as North Americans do.
_PHONE = re.compile(
    r"(?<![\w+])\+\d(?:[ ()./-]{0,2}\d){6,14}(?!\d)"
    r"|(?<![\w.-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[.-]\d{4}(?![\d-])"
)
#: No text without it can hold any of them: an @, or six digits that are near each other.
_WORTH_A_LOOK = re.compile(r"@|\d(?:\D{0,2}\d){5}")


def masked(text: str) -> str:
    """The text with a word in square brackets in place of each thing; the same text if none is."""
    if not _WORTH_A_LOOK.search(text):
        return text
    text = _MAIL.sub("[e-mail]", text)
    text = _PASSPORT.sub("passport [number]", text)
    text = _CARD.sub(lambda match: "[card]" if luhn(match[0]) else match[0], text)
    return _PHONE.sub("[phone]", text)


def luhn(number: str) -> bool:
    """Whether a number passes the check that cards have; what is no digit is left out."""
    digits = [int(each) for each in reversed(number) if each.isdecimal()]
    doubled = (sum(divmod(2 * each, 10)) for each in digits[1::2])
    return any(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0
