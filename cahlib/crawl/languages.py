"""The languages to keep: from the BCP 47 tags that users give to the codes of CLD2."""

from __future__ import annotations

from collections.abc import Mapping

import pycld2
import regex

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError

#: CLD2's codes by their lower-case form; "un" means unknown.
_CODES = {code.lower(): code for _, code in pycld2.LANGUAGES} | {"un": "un"}
#: Languages that CLD2 names differently: Hebrew, Javanese, Norwegian Bokmål, Filipino, Mandarin.
_CLD2_ALIASES = {"he": "iw", "jv": "jw", "nb": "no", "fil": "tl", "cmn": "zh"}
#: CLD2's codes for simplified and traditional Chinese, by script and by region.
CHINESE = frozenset({"zh", "zh-Hant"})
#: Bokmål and Nynorsk.
_NORWEGIAN = "no", "nn"
_HANS, _HANT = "zh", "zh-Hant"
_CHINESE_SCRIPTS = dict.fromkeys(("Hans", "CN", "SG", "MY"), _HANS)
_CHINESE_SCRIPTS |= dict.fromkeys(("Hant", "TW", "HK", "MO"), _HANT)
#: Character sets that hold the characters of one script and the shared ones. CLD2 takes a short
#: text of shared characters for traditional.
_CHARACTER_SETS = {_HANS: "gb2312", _HANT: "big5"}
_HAN = regex.compile(r"\p{Han}+")
_LETTER = regex.compile(r"\p{L}")


class WantedLanguages(dict[str, "regex.Pattern[str] | None"]):
    """The languages to keep by CLD2's codes, each with a pattern of its only accepted script."""

    def includes(self, language: str, text: str) -> bool:
        """Return whether to keep a text that CLD2 assigns to ``language``."""
        if language in CHINESE:
            if _HANS not in self and _HANT not in self:
                return False
            return any(each in self for each in chinese_scripts(text) or (language,))
        if language not in self:
            return False
        script = self[language]
        return script is None or 2 * len(script.findall(text)) > len(_LETTER.findall(text))

    def unrestricted(self) -> frozenset[str]:
        """Return the languages that are accepted in any script."""
        return frozenset(each for each in self if self[each] is None) - CHINESE


def wanted_languages(options: Crawl) -> WantedLanguages | None:
    """Return the languages to keep, None for any; raise ConfigError for one that CLD2 lacks."""
    if any(each.lower() == "all" for each in options.languages):
        return None
    if not options.languages:
        raise ConfigError("languages: name the languages to keep, such as en,de, or all.")
    found = WantedLanguages()
    for tag in options.languages:
        for code, script in _codes_of(tag).items():
            found[code] = None if code in found and found[code] is None else script
    return found


def cld2_code(tag: str) -> str:
    """Return CLD2's code for the language tag that a page declares, "" if there is none."""
    from langcodes import Language  # 50 ms

    try:
        read = Language.get(tag, normalize=True)
    except ValueError:
        return ""
    if read.language in ("zh", "cmn"):
        return _CHINESE_SCRIPTS.get(read.script or read.territory or "Hans", _HANS)
    return str(_CODES.get(_CLD2_ALIASES.get(str(read.language), str(read.language)), ""))


def chinese_scripts(text: str) -> frozenset[str]:
    """Return the Chinese scripts that all characters of a text belong to; none if mixed."""
    letters = "".join(_HAN.findall(text))
    return frozenset(
        each for each, known in _CHARACTER_SETS.items() if _is_encodable(known, letters)
    )


def _is_encodable(known: str, letters: str) -> bool:
    try:
        letters.encode(known)
    except UnicodeEncodeError:
        return False
    return True


def _codes_of(tag: str) -> Mapping[str, regex.Pattern[str] | None]:
    """Return the codes of a user's tag; raise ConfigError if texts do not show the difference."""
    if tag.lower() in _CODES and tag.lower() != "zh":
        return dict.fromkeys(_NORWEGIAN if tag.lower() == "no" else (_CODES[tag.lower()],))
    from langcodes import Language

    try:
        read = Language.get(tag, normalize=True)
    except ValueError:
        raise _unknown(tag) from None
    if read.language in ("zh", "cmn"):
        named = read.script or read.territory
        if named and named not in _CHINESE_SCRIPTS:
            raise ConfigError(f"languages: {tag} cannot be told apart from other Chinese; use zh.")
        return {_CHINESE_SCRIPTS[named]: None} if named else dict.fromkeys(CHINESE)
    known = _CODES.get(_CLD2_ALIASES.get(str(read.language), str(read.language)))
    if known is None:
        raise _unknown(tag)
    if read.territory or read.variants or read.extensions or read.private:
        kept = str(read.language) + (f"-{read.script}" if read.script else "")
        raise ConfigError(
            f"languages: {tag} names more than a language and a script, which cannot be told from "
            f"a text; use {kept}."
        )
    return {known: _script(tag, read.script) if read.script else None}


def _script(tag: str, script: str) -> regex.Pattern[str]:
    try:
        return regex.compile(rf"\p{{Script={script}}}")
    except regex.error:
        raise ConfigError(f"languages: {tag} does not name a script with one alphabet.") from None


def _unknown(tag: str) -> ConfigError:
    return ConfigError(
        f"languages: {tag!r} is not a language that CLD2 knows; use en, zh-Hant, sr-Latn … or all."
    )
