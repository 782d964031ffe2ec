"""Personal data in texts: e-mail addresses, phone, payment card and passport numbers.

Found by their form alone, so that ordinary captions with sizes, dates and prices stay as they are:
a phone number needs an international prefix, the form of one in North America, or a word that says
so; a card number needs its check digit (ISO/IEC 7812-1); a passport number the word.
"""

from __future__ import annotations

import re

#: Digits in groups, as people write long numbers.
_MORE = r"(?:[ ./()-]{0,2}\d)"
#: What is put in place of what; the group "kept" stays.
_FORMS = (
    ("<e-mail>", re.compile(r"[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}\w{2,24}\b")),
    (
        "<card>",
        re.compile(
            r"(?<![\w.])(?:\d{13,19}|\d{4}(?P<a>[ -])\d{4}(?P=a)\d{4}(?P=a)\d{1,7}"
            r"|\d{4}(?P<b>[ -])\d{6}(?P=b)\d{4,5})(?!\w)"
        ),
    ),
    ("<phone>", re.compile(rf"(?<![\w.])(?:\+|00)[1-9]{_MORE}{{7,14}}(?!\w)")),
    (
        "<phone>",
        re.compile(
            r"(?<![\w.])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[ .-]\d{4}(?!\w)"
        ),
    ),
    (
        "<phone>",
        re.compile(
            r"(?P<kept>\b(?:tel|fax|call|cell|phone|mobile|whatsapp)\b[:. ]{1,3})"
            rf"\(?\d{_MORE}{{5,14}}(?!\w)",
            re.IGNORECASE,
        ),
    ),
    (
        "<passport>",
        re.compile(
            r"(?P<kept>\bpassport(?:\s*(?:no|nr|number)\b\.?|\s*#)?[:\s]{0,3})"
            r"(?=(?:[A-Z]*\d){5})[A-Z\d]{7,9}(?!\w)",
            re.IGNORECASE,
        ),
    ),
)
#: A text without these holds none of them: most need no further look.
_HINT = re.compile(r"[@\d](?:(?<=@)|(?:\D{0,3}\d){5})")


def masked(text: str) -> str:
    """The text with a word such as "<phone>" in place of each personal datum."""
    if not _HINT.search(text):
        return text
    for word, form in _FORMS:
        text = form.sub(lambda match, word=word: _mask(match, word), text)  # type: ignore[misc]
    return text


def _mask(match: re.Match[str], word: str) -> str:
    if word == "<card>" and not _checked(match[0]):
        return match[0]
    return str(match.groupdict().get("kept", "")) + word


def _checked(number: str) -> bool:
    """Whether the last digit is the check digit of the others, by Luhn's rule."""
    digits = [int(each) for each in number if each.isdigit()][::-1]
    doubled = (2 * each - 9 * (each > 4) for each in digits[1::2])
    return any(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0
