"""Which languages are wanted: BCP 47 tags as people write them, in terms of what CLD2 tells."""

from __future__ import annotations

from collections.abc import Mapping

import pycld2
import regex

from cahlib.config import Crawl
from cahlib.errors import ConfigError

#: The codes of CLD2, by their small letters; "un" is what it says where it knows none.
_CODES = {code.lower(): code for _, code in pycld2.LANGUAGES} | {"un": "un"}
#: What CLD2 calls otherwise: Hebrew, Javanese, Norwegian Bokmål, Filipino, Mandarin.
_OTHERS = {"he": "iw", "jv": "jw", "nb": "no", "fil": "tl", "cmn": "zh"}
#: Both ways to write Chinese, as CLD2 names them, by script and by the regions that use it.
CHINESE = frozenset({"zh", "zh-Hant"})
#: And both to write Norwegian.
_NORWEGIAN = "no", "nn"
_HANS, _HANT = "zh", "zh-Hant"
_WRITTEN = dict.fromkeys(("Hans", "CN", "SG", "MY"), _HANS)
_WRITTEN |= dict.fromkeys(("Hant", "TW", "HK", "MO"), _HANT)
#: Sets of characters that hold those of one way alone and those of both. CLD2 takes a short text
#: of characters that both use for traditional.
_SETS = {_HANS: "gb2312", _HANT: "big5"}
_HAN = regex.compile(r"\p{Han}+")
_LETTER = regex.compile(r"\p{L}")


class WantedLanguages(dict[str, "regex.Pattern[str] | None"]):
    """The languages to keep, as CLD2 names them, each with the letters of its only script."""

    def includes(self, language: str, text: str) -> bool:
        """Return whether a text, which CLD2 takes for a language, is wanted."""
        if language in CHINESE:
            if _HANS not in self and _HANT not in self:
                return False
            return any(each in self for each in chinese_scripts(text) or (language,))
        if language not in self:
            return False
        script = self[language]
        return script is None or 2 * len(script.findall(text)) > len(_LETTER.findall(text))

    def unrestricted(self) -> frozenset[str]:
        """Return the languages of which every text is wanted."""
        return frozenset(each for each in self if self[each] is None) - CHINESE


def wanted_languages(options: Crawl) -> WantedLanguages | None:
    """Return the languages to keep, None for any; raise ConfigError for those that CLD2 lacks."""
    if any(each.lower() == "all" for each in options.languages):
        return None
    if not options.languages:
        raise ConfigError("languages: name those to keep, as en,de, or all.")
    found = WantedLanguages()
    for tag in options.languages:
        for code, script in _meant(tag).items():
            found[code] = None if code in found and found[code] is None else script
    return found


def cld2_code(tag: str) -> str:
    """Return CLD2's name of the language that a page declares by a tag; "" if it has none."""
    from langcodes import Language  # 50 ms

    try:
        read = Language.get(tag, normalize=True)
    except ValueError:
        return ""
    if read.language in ("zh", "cmn"):
        return _WRITTEN.get(read.script or read.territory or "Hans", _HANS)
    return str(_CODES.get(_OTHERS.get(str(read.language), str(read.language)), ""))


def chinese_scripts(text: str) -> frozenset[str]:
    """Return the ways to write Chinese that a text may follow, by its characters; none if mixed."""
    letters = "".join(_HAN.findall(text))
    return frozenset(each for each, known in _SETS.items() if _holds(known, letters))


def _holds(known: str, letters: str) -> bool:
    try:
        letters.encode(known)
    except UnicodeEncodeError:
        return False
    return True


def _meant(tag: str) -> Mapping[str, regex.Pattern[str] | None]:
    """Return what a tag of a user means; raise ConfigError if that cannot be told from a text."""
    if tag.lower() in _CODES and tag.lower() != "zh":
        return dict.fromkeys(_NORWEGIAN if tag.lower() == "no" else (_CODES[tag.lower()],))
    from langcodes import Language

    try:
        read = Language.get(tag, normalize=True)
    except ValueError:
        raise _unknown(tag) from None
    if read.language in ("zh", "cmn"):
        named = read.script or read.territory
        if named and named not in _WRITTEN:
            raise ConfigError(f"languages: {tag} is not told from other Chinese; give zh.")
        return {_WRITTEN[named]: None} if named else dict.fromkeys(CHINESE)
    known = _CODES.get(_OTHERS.get(str(read.language), str(read.language)))
    if known is None:
        raise _unknown(tag)
    if read.territory or read.variants or read.extensions or read.private:
        kept = str(read.language) + (f"-{read.script}" if read.script else "")
        raise ConfigError(
            f"languages: {tag} names more than a language and a script, which a text does not "
            f"tell; give {kept}."
        )
    return {known: _script(tag, read.script) if read.script else None}


def _script(tag: str, script: str) -> regex.Pattern[str]:
    try:
        return regex.compile(rf"\p{{Script={script}}}")
    except regex.error:
        raise ConfigError(f"languages: {tag} names no script of one alphabet.") from None


def _unknown(tag: str) -> ConfigError:
    return ConfigError(
        f"languages: {tag} is no code that CLD2 knows; give en, zh, zh-Hant, sr-Latn … or all."
    )
