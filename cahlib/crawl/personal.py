"""Mask personal data in texts: e-mail addresses, phone, payment card and passport numbers.

Patterns come first, so that ordinary captions with sizes, dates and prices stay unchanged: a phone
number needs an international prefix, a 0 before its area code, the North American form, or a word
such as "phone" in one of the large languages; a passport number needs the word. Matches are then
checked: phone numbers against the numbering plans of all countries, cards for the check digit
(ISO/IEC 7812-1), the prefixes and lengths that networks have issued, and not being the number of an
article (GS1: ISBN, EAN, GTIN).
"""

from __future__ import annotations

import re as _re
from collections.abc import Callable, Sequence
from functools import partial

import regex as re

#: Separators between the digits of long numbers.
_SEPARATOR = r"[ ./()\u2010-\u2015\uff0d-]{0,2}"
_DIGIT = rf"(?:{_SEPARATOR}\d)"
_EMAIL = re.compile(
    r"[\w.+%-]{1,64}@(?!\dx\.)(?:[\w-]{1,63}\.){1,8}(?:xn--[\w-]{2,20}|[^\W\d_]{2,24})\b"
)
_CARD = re.compile(
    r"(?<![\w.])(?:\d{13,19}|\d{4}(?P<a>[ -])\d{4}(?P=a)\d{4}(?P=a)\d{1,7}"
    r"|\d{4}(?P<b>[ -])\d{6}(?P=b)\d{4,5})(?!\w)"
)
_INTERNATIONAL = re.compile(rf"(?<![\w.])(?:\+|00)[1-9]{_DIGIT}{{7,14}}(?!\w)")
_AMERICAN = re.compile(
    r"(?<![\w.])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d(?:[.-]|(?<=1 \d\d\d) ))"
    r"[2-9]\d\d[ .-]\d{4}(?!\w)"
)
#: With the 0 that many countries dial before an area code, grouped as is usual there.
_NATIONAL = re.compile(
    rf"(?<![\w.,/-]|\d )(?:\(?0[1-9]\d{{0,3}}(?=\D)|0 ?\([1-9]\d){_DIGIT}{{7,9}}(?![ .,/-]?\d|\w)"
)
_LABELLED = re.compile(
    r"(?P<kept>(?<![\w/.])(?:tel|fax|whatsapp"
    r"|(?:call|cell|phone|mobile)(?=[:. ]{1,3}\d{3}[ -]\d{4}(?![\w.-]| \d)))\b[:. ]{1,3})"
    rf"(?P<number>\(?\d{_DIGIT}{{5,14}})(?!\w)",
    re.IGNORECASE,
)
#: Words or word stems for a phone or a call, in the web's large languages.
_CALL_WORDS = (
    r"(?:appel|bel(?:t|len)?\b|call|cel[. :]|celular|cell|chiam|contact|fax|fono|gsm\b|handy|hívj"
    r"|hotline|hubungi|kontakt|liga\b|ligue|llam|mob(?:il|[.: ])|m[óo]vil|num[eé]r|ph(?:one)?\b"
    r"|ring|ruf|soita|suna|sđt|t[ée]l|tlf|whatsapp|zadzwo|zap\b|zavol|zovi|zvoni|дзвон|звон|моб"
    r"|тел|κιν|κλή|τηλ)"
)
_CALL_WORDS_UNSPACED = (
    "☎|☏|✆|📞|📱|电话|電話|手机|手機|热线|聯絡|联系|問い合わせ|予約|携帯|전화|문의|연락|휴대|โทร|ติดต่อ"
    "|هاتف|جوال|اتصل|تلفن|شماره|موبایل|موبايل|واتساب|טלפון|נייד|הזמנות|फोन|मोबाइल|संपर्क|ফোন|মোবাইল"
)
_NEAR_CALL_WORD = re.compile(
    rf"(?P<kept>(?:(?<![^\W_]){_CALL_WORDS}|{_CALL_WORDS_UNSPACED})[^\d\n+]{{0,20}}?)"
    rf"(?<![\d.,/-])(?P<number>\(?\d{_DIGIT}{{7,11}})(?![ .,/-]?\d|\w)",
    re.IGNORECASE,
)
#: An e-mail address disguised from programs.
_DISGUISED_EMAIL = re.compile(
    r"(?<![\w.])[\w.+-]{1,64} ?[\[({] ?at ?[\])}] ?[\w-]{1,63}"
    r"(?:(?P<dot>\.| ?[\[({] ?dot ?[\])}] ?)[\w-]{1,63}){0,6}(?&dot)[^\W\d_]{2,24}\b",
    re.IGNORECASE,
)
_PASSPORT = re.compile(
    r"(?P<kept>\b(?:pass?(?:e?port|aport)[eou]?|reisepass|paspoort|paszportu?|паспорт\w{0,2})"
    r"(?:-?\s*(?:no|nr|num[ems]?[eé]?r[o]?|número|n[°º.]|nummer|number|numer|серия)"
    r"(?!\p{L})[.:°º]?|\s*[#№])?[:\s]{0,3})"
    r"(?:(?=(?:[A-Z]*\d){5})[A-Z\d]{7,9}"
    r"|\d\d ?\d\d(?: номер| №)? ?\d{6}|\d\d \d{7})(?!\w)",
    re.IGNORECASE,
)
#: The machine-readable zone (ICAO 9303).
_MACHINE_READABLE = re.compile(r"(?<!\w)P[A-Z<][A-Z]{3}[A-Z<]{20,39}(?:\s?[A-Z\d<]{28,44})?")
#: A text without any of these characters has none; `re` checks that in a fifth of the time.
_FIRST_HINT = _re.compile("[@0-9\x80-\U0010ffff\\[({<]")
#: A text without a match has no personal data: most need no further check.
_HINT = re.compile(r"[@\d](?:(?<=@)|(?:\D{0,3}\d){5})|[\[({] ?at ?[\])}]|<<<", re.IGNORECASE)

#: Phone and card numbers have at least six digits in a row.
_LONG_NUMBER = re.compile(rf"\d{_DIGIT}{{5}}")

#: Words before a number that mark it as something else.
_OTHER_NUMBER = re.compile(
    r"\b(?:part|item|model|type|ref|sku|oem|art|inv|inventory|cat|catalog|catalogue|lot|serial|order"
    r"|isbn|ean|gtin|upc|imei|barcode|product|patent|invoice)"
    r"(?:[ .:#-]|no\b|nr\b|number\b|code\b|13\b)*$",
    re.IGNORECASE,
)
#: Prefixes and lengths that card networks have issued: Visa, Mastercard, American Express,
#: Discover, Diners Club, JCB, UnionPay, Maestro, Mir, RuPay, Verve, Troy.
_ISSUED = re.compile(
    r"4\d{15}|4\d{12}|4\d{18}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|(?:6011|64[4-9]\d|65\d\d)\d{12,15}|3(?:0[0-5]|09|[689]\d)\d{11}"
    r"|35(?:2[89]|[3-8]\d)\d{12,15}|62\d{14,17}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}|220[0-4]\d{12,15}"
    r"|(?:60|81|82|508\d)\d{12,14}|(?:506[01]|9792)\d{12,15}"
)
#: Screen dimensions in pixels: "Mobile: 1920 1080" is a size.
_SCREEN_SIZES = frozenset(
    "320 360 375 390 393 411 412 414 428 430 480 540 568 600 640 667 720 736 750 768 780 800 812 "
    "828 844 852 854 896 900 915 926 932 960 1024 1050 1080 1125 1136 1170 1179 1200 1206 1242 "
    "1260 1280 1284 1290 1320 1334 1366 1440 1536 1600 1620 1644 1668 1680 1792 1800 1920 2048 "
    "2160 2208 2220 2224 2246 2270 2280 2310 2316 2340 2360 2388 2400 2408 2412 2436 2460 2520 "
    "2532 2556 2560 2622 2688 2712 2732 2778 2796 2868 2880 3040 3088 3120 3200 3840 4096 4320 "
    "5120 7680 16 32 64 128 256 512".split()  # and storage sizes
)
#: Countries whose numbers are recognised without a prefix: those with most of the web's pages.
_REGIONS = (
    "GB DE FR IT ES NL PL BR RU IN CN JP KR TR UA GR IL SA EG IR VN ID TH AU NZ ZA IE SE NO FI DK "
    "CH AT BE PT CZ SK HU RO BG HR RS MX AR CO PE CL BD MY"
).split()
_YEAR = re.compile(r"(?:19|20)\d\d")
_DAY = re.compile(r"(?:0?[1-9]|[12]\d|3[01])")
_VERSION = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_THOUSANDS = re.compile(r"\d{1,3}(?:[.]\d{3})*[.]\d{2}0")


def mask_personal_data(text: str) -> str:
    """Return the text with a placeholder such as "<phone>" for each piece of personal data."""
    if not _FIRST_HINT.search(text) or not _HINT.search(text):
        return text
    long = _LONG_NUMBER.search(text) is not None
    for word, form, holds in _FORMS:
        if long or word in ("<e-mail>", "<passport>"):
            text = form.sub(partial(_mask, word, holds), text)
    return text


def _mask(word: str, holds: Callable[[re.Match[str]], bool], match: re.Match[str]) -> str:
    if not holds(match):
        return match[0]
    return str(match.groupdict().get("kept", "")) + word


def _is_other_number(match: re.Match[str]) -> bool:
    """Return whether the words before a number mark it as a part number or the like."""
    before = match.string[max(0, match.start() - 30) : match.start()]
    return _OTHER_NUMBER.search(before) is not None


def _is_card(match: re.Match[str]) -> bool:
    number = "".join(each for each in match[0] if each.isdecimal())
    if not _ISSUED.fullmatch(number) or not _has_luhn_digit(number) or _is_other_number(match):
        return False
    groups = re.findall(r"\d+", match[0])
    if len(groups) > 1 and all(each.endswith("000") for each in groups):
        return False
    return number != match[0] or not _is_article(number)


def _has_luhn_digit(number: str) -> bool:
    """Return whether the last digit is the Luhn check digit of the others."""
    digits = [int(each) for each in number][::-1]
    doubled = (2 * each - 9 * (each > 4) for each in digits[1::2])
    return any(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_article(number: str) -> bool:
    """Return whether a number has the length and the check digit of a GTIN (GS1)."""
    if len(number) not in (13, 14):
        return False
    digits = [int(each) for each in number][::-1]
    return (sum(digits[::2]) + 3 * sum(digits[1::2])) % 10 == 0


def _is_international(match: re.Match[str]) -> bool:
    """Return whether a number that begins with + or 00 fits its country's numbering plan."""
    number = match[0]
    if number.startswith("+"):
        # validity excludes fictional and new numbers; scores and strengths are multiples of ten
        groups = re.findall(r"\d+", number)
        steps = all(each[-1] in "05" for each in groups) or _is_date(groups)
        return _fits_plan(number, strict=steps)
    # without separators it is more likely a part number, unless it is unusually long
    if number.isdecimal() and (len(number) < 13 or _is_article(number)):
        return False
    return not _is_other_number(match) and _fits_plan("+" + number.removeprefix("00"))


def _is_national(match: re.Match[str]) -> bool:
    """Return whether a number is a phone number in some country, as written there."""
    number = match.groupdict().get("number") or match[0]
    groups = re.findall(r"\d+", number)
    if _is_date(groups) or _is_series(number, groups) or _is_other_number(match):
        return False
    trunk = int(groups[0][0]) == 0
    if _is_sorted(groups) and not (trunk and "kept" in match.groupdict()):
        return False
    free = trunk or len(groups) == 1 or min(map(len, groups)) > 2
    return any(_fits_plan(number, each, groups=() if free else groups) for each in _REGIONS)


def _is_series(number: str, groups: list[str]) -> bool:
    """Return whether the numbers are sizes or prices."""
    if len(groups) > 1 and all(each in _SCREEN_SIZES for each in groups):
        return True
    rounded = len(groups) > 1 and all(each.endswith("00") for each in groups)
    return rounded or bool(_THOUSANDS.fullmatch(number) or re.match(r"\d{1,2}\.\d(?!\d)", number))


def _is_sorted(groups: list[str]) -> bool:
    """Return whether the numbers are sorted, like those of a lottery, a calendar or sizes."""
    values = [int(each) for each in groups]
    return len(values) > 3 and values in (sorted(values), sorted(values)[::-1])


def _is_american(match: re.Match[str]) -> bool:
    return not _is_other_number(match) and _fits_plan(match[0])


def _fits_plan(
    number: str, region: str = "US", *, strict: bool = True, groups: Sequence[str] = ()
) -> bool:
    """Return whether a number fits a country's plan: its ranges, or without ``strict`` its lengths.

    If ``groups`` are given, they must be those in which the country writes the number.
    """
    import phonenumbers  # 60 ms, which most runs of `cah` save

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False
    fits = phonenumbers.is_valid_number if strict else phonenumbers.is_possible_number
    if not fits(parsed) or not groups:
        return bool(fits(parsed))
    written = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.NATIONAL)
    return [int(each) for each in re.findall(r"\d+", written)] == [int(each) for each in groups]


def _is_date(groups: list[str]) -> bool:
    """Return whether the numbers include a year, and only years and days."""
    years = [each for each in groups if _YEAR.fullmatch(each)]
    return bool(years) and all(each in years or _DAY.fullmatch(each) for each in groups)


def _is_labelled_phone(match: re.Match[str]) -> bool:
    """Return whether a number behind a word for a phone is not a date, version or IP address."""
    number = match["number"]
    groups = re.findall(r"\d+", number)
    return not (_is_date(groups) or _is_series(number, groups) or _VERSION.fullmatch(number))


_FORMS: tuple[tuple[str, re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    ("<e-mail>", _EMAIL, lambda match: True),
    ("<e-mail>", _DISGUISED_EMAIL, lambda match: True),
    ("<passport>", _MACHINE_READABLE, lambda match: True),
    ("<card>", _CARD, _is_card),
    ("<phone>", _INTERNATIONAL, _is_international),
    ("<phone>", _AMERICAN, _is_american),
    ("<phone>", _LABELLED, _is_labelled_phone),
    ("<phone>", _NATIONAL, _is_national),
    ("<phone>", _NEAR_CALL_WORD, _is_national),
    ("<passport>", _PASSPORT, lambda match: True),
)
