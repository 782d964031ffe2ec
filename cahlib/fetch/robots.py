"""What a robots.txt allows us: RFC 9309, and the lines on use that the AI era added.

Rules: the groups that name us, else those for everybody; of the rules that match a path the
longest counts, and of two as long the one that allows. It does not fetch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

from cahlib.fetch.opt_outs import USER_AGENT_TOKEN, refuses_training

#: RFC 9309, 2.5: at least so much has to be read; what stands behind it is not.
MAX_ROBOTS_BYTES = 500 * 1024
#: Rules that are tried one by one, those with wild cards and usages, about 1 µs each: no file is
#: worth more than this.
_MAX_TRIED = 2000

#: Lines on the use of what is fetched: AIPREF's, and Cloudflare's.
_USAGES = ("content-usage", "content-signal")

#: How names of lines begin; the misspellings are those of Google's parser.
_KEY = re.compile(
    r"(user-?agent|user agent)|(allow)|(disallow|dissallow|dissalow|disalow|diasllow|disallaw)"
)
_KEYS = ("", "user-agent", "allow", "disallow")

_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")


class RobotsRule(NamedTuple):
    """A line of a robots.txt that allows or refuses."""

    allows: bool
    line: str  #: as it was served


class UsageRule(NamedTuple):
    """A line of a robots.txt on the use of what is below a path."""

    path: str
    wish: str
    line: str  #: as it was served


class RobotsTxt:
    """The rules of one robots.txt that bind us."""

    __slots__ = ("_plain", "_usages", "_wild")

    def __init__(self, text: str) -> None:
        self._plain: dict[str, RobotsRule] = {}
        self._wild: list[tuple[str, RobotsRule]] = []
        self._usages: list[UsageRule] = []
        for key, value in _binding(text):
            if key in _USAGES:
                if len(self._usages) < _MAX_TRIED:
                    self._usages.append(_usage(key, value))
            elif value:
                self._add(normalize_path(value), RobotsRule(key == "allow", f"{key}: {value}"))
        self._wild.sort(key=lambda each: (-len(each[0]), not each[1].allows))

    def refusal(self, target: str) -> str | None:
        """The line that refuses the fetch of a path with its query, or None."""
        if target == "/robots.txt":
            return None
        target = normalize_path(target)
        found = [self._longest_plain(target), self._longest_wild(target)]
        _, _, rule = max((each for each in found if each), default=(0, True, None))
        return None if rule is None or rule.allows else rule.line

    def training_refusal(self, target: str) -> str | None:
        """The line that refuses the training of models on a path, or None.

        Of the lines for one path each counts, so that none can take back what another refuses.
        """
        target = normalize_path(target)
        fitting = [usage for usage in self._usages if path_matches(usage.path, target)]
        longest = max((len(usage.path) for usage in fitting), default=0)
        lines = (u.line for u in fitting if len(u.path) == longest and refuses_training(u.wish))
        return next(lines, None)

    def _add(self, path: str, rule: RobotsRule) -> None:
        if "*" in path or path.endswith("$"):
            if len(self._wild) < _MAX_TRIED:
                self._wild.append((path, rule))
        elif path not in self._plain or rule.allows:
            self._plain[path] = rule

    def _longest_plain(self, target: str) -> tuple[int, bool, RobotsRule] | None:
        for end in range(len(target), 0, -1) if self._plain else ():
            if rule := self._plain.get(target[:end]):
                return end, rule.allows, rule
        return None

    def _longest_wild(self, target: str) -> tuple[int, bool, RobotsRule] | None:
        for path, rule in self._wild:
            if path_matches(path, target):
                return len(path), rule.allows, rule
        return None


def _binding(text: str) -> Iterator[tuple[str, str]]:
    """The rules of the groups that name us, or if there are none, of those for everybody."""
    groups: dict[str, list[tuple[str, str]]] = {USER_AGENT_TOKEN: [], "*": []}
    named = False
    current: set[str] = set()
    heading = False
    for key, value in _lines(text):
        if key == "user-agent":
            current = current if heading else set()
            agent = (re.match(r"[a-z_-]+|\*", value.lower()) or [""])[0]
            current.add(agent)
            named |= agent == USER_AGENT_TOKEN
            heading = True
        elif key in ("allow", "disallow", *_USAGES):
            heading = False
            for agent in current & groups.keys():
                groups[agent].append((key, value))
    yield from groups[USER_AGENT_TOKEN if named else "*"]


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Return names and values of lines as Google's parser reads them, which forgives more than
    RFC 9309: what follows the name, the usual misspellings, and a colon that is missing.
    """
    for line in re.split(r"[\r\n]+", text.removeprefix("\ufeff")):
        said = line.partition("#")[0].strip()
        key, colon, value = said.partition(":")
        if not colon:
            words = said.split()
            if len(words) != 2:
                continue
            key, value = words
        key = key.strip().lower()
        known = _KEY.match(key)
        yield (_KEYS[known.lastindex or 0] if known else key), value.strip()


def _usage(key: str, value: str) -> UsageRule:
    """What a line on use says; its path may be left out."""
    match = re.fullmatch(r"(/\S*)\s+(.*)", value)
    path, wish = (normalize_path(match[1]), match[2]) if match else ("/", value)
    return UsageRule(path, wish, f"{key}: {value}")


def path_matches(pattern: str, target: str) -> bool:
    """Whether a path begins as a pattern says; ``*`` is anything, ``$`` at the end the end."""
    anchored = pattern.endswith("$")
    first, *others = pattern.removesuffix("$").split("*")
    if not target.startswith(first):
        return False
    at = len(first)
    if anchored and others:
        last = others.pop()
    elif anchored:
        return at == len(target)
    else:
        last = ""
    for part in others:
        found = target.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return not last or (len(target) - len(last) >= at and target.endswith(last))


def normalize_path(path: str) -> str:
    """A path in one spelling: escapes only where they are needed (RFC 9309, 2.2.2)."""

    def undo(match: re.Match[str]) -> str:
        letter = chr(int(match[1], 16))
        return letter if _UNRESERVED.fullmatch(letter) else match[0].upper()

    return quote(_ESCAPE.sub(undo, path), "%/?:@!$&'()*+,;=[]|\\^~<>{}\"`", errors="replace")


def resolve_dots(target: str) -> str:
    """A path with its query as servers and browsers read it: dots are steps, ``\\`` is ``/``."""
    path, mark, query = normalize_path(target).partition("?")
    if "/." not in path and "\\" not in path:
        return target
    steps: list[str] = []
    whole = re.sub(r"/\.\.?\Z", r"\g<0>/", path.replace("\\", "/"))
    for step in whole.split("/")[1:]:
        if step == "..":
            del steps[-1:]
        elif step != ".":
            steps.append(step)
    return "/" + "/".join(steps) + mark + query
