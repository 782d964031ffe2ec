"""Parse robots.txt: RFC 9309, and the newer lines on usage by AI.

The groups that name us apply, or else those for every agent; of the rules that match a path the
longest applies, and of two equally long ones the one that allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

from cahlib.fetch.opt_outs import USER_AGENT_TOKEN, refuses_training

#: RFC 9309, 2.5: at least this many bytes must be parsed; the rest is ignored.
MAX_ROBOTS_BYTES = 500 * 1024
#: Rules with wildcards and usage lines, which are tried one by one, about 1 µs each.
_MAX_RULES = 2000

#: Names of lines on usage: AIPREF's and Cloudflare's.
_USAGE_NAMES = ("content-usage", "content-signal")

#: Prefixes of line names; the misspellings are those that Google's parser accepts.
_NAME_PREFIX = re.compile(
    r"(user-?agent|user agent)|(allow)|(disallow|dissallow|dissalow|disalow|diasllow|disallaw)"
)
_NAMES = ("", "user-agent", "allow", "disallow")

_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")


class RobotsRule(NamedTuple):
    """An allow or disallow line."""

    allows: bool
    line: str  #: as served


class UsageRule(NamedTuple):
    """A line on the usage of what is below a path."""

    path: str
    preference: str
    line: str  #: as served


class RobotsTxt:
    """The rules of a robots.txt that apply to us."""

    __slots__ = ("_plain", "_usages", "_wildcard")

    def __init__(self, text: str) -> None:
        self._plain: dict[str, RobotsRule] = {}
        self._wildcard: list[tuple[str, RobotsRule]] = []
        self._usages: list[UsageRule] = []
        for key, value in _applicable_rules(text):
            if key in _USAGE_NAMES:
                if len(self._usages) < _MAX_RULES:
                    self._usages.append(_parse_usage(key, value))
            elif value:
                self._add(normalize_path(value), RobotsRule(key == "allow", f"{key}: {value}"))
        self._wildcard.sort(key=lambda each: (-len(each[0]), not each[1].allows))

    def disallowing_line(self, target: str) -> str | None:
        """Return the line that disallows a path with its query, or None."""
        if target == "/robots.txt":
            return None
        target = normalize_path(target)
        found = [self._longest_plain(target), self._longest_wild(target)]
        _, _, rule = max((each for each in found if each), default=(0, True, None))
        return None if rule is None or rule.allows else rule.line

    def training_refusal(self, target: str) -> str | None:
        """Return the line that refuses training on a path, or None.

        All lines for the same path count, so that none overrides another's refusal.
        """
        target = normalize_path(target)
        fitting = [usage for usage in self._usages if path_matches(usage.path, target)]
        longest = max((len(usage.path) for usage in fitting), default=0)
        lines = (
            u.line for u in fitting if len(u.path) == longest and refuses_training(u.preference)
        )
        return next(lines, None)

    def _add(self, path: str, rule: RobotsRule) -> None:
        if "*" in path or path.endswith("$"):
            if len(self._wildcard) < _MAX_RULES:
                self._wildcard.append((path, rule))
        elif path not in self._plain or rule.allows:
            self._plain[path] = rule

    def _longest_plain(self, target: str) -> tuple[int, bool, RobotsRule] | None:
        for end in range(len(target), 0, -1) if self._plain else ():
            if rule := self._plain.get(target[:end]):
                return end, rule.allows, rule
        return None

    def _longest_wild(self, target: str) -> tuple[int, bool, RobotsRule] | None:
        for path, rule in self._wildcard:
            if path_matches(path, target):
                return len(path), rule.allows, rule
        return None


def _applicable_rules(text: str) -> Iterator[tuple[str, str]]:
    """Yield the rules of the groups that name us, or else of those for every agent."""
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
        elif key in ("allow", "disallow", *_USAGE_NAMES):
            heading = False
            for agent in current & groups.keys():
                groups[agent].append((key, value))
    yield from groups[USER_AGENT_TOKEN if named else "*"]


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and values of lines, as leniently as Google's parser.

    Beyond RFC 9309 it accepts suffixes of the name, common misspellings, and a missing colon.
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
        known = _NAME_PREFIX.match(key)
        yield (_NAMES[known.lastindex or 0] if known else key), value.strip()


def _parse_usage(key: str, value: str) -> UsageRule:
    """Parse a usage line, whose path is optional."""
    match = re.fullmatch(r"(/\S*)\s+(.*)", value)
    path, preference = (normalize_path(match[1]), match[2]) if match else ("/", value)
    return UsageRule(path, preference, f"{key}: {value}")


def path_matches(pattern: str, target: str) -> bool:
    """Return whether a pattern matches the start of a path; ``*`` and a final ``$`` are special."""
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
    """Return a path with only the necessary escapes (RFC 9309, 2.2.2)."""

    def undo(match: re.Match[str]) -> str:
        letter = chr(int(match[1], 16))
        return letter if _UNRESERVED.fullmatch(letter) else match[0].upper()

    return quote(_ESCAPE.sub(undo, path), "%/?:@!$&'()*+,;=[]|\\^~<>{}\"`", errors="replace")


def resolve_dots(target: str) -> str:
    """Resolve the dot segments of a path with its query, as browsers do; ``\\`` is ``/``."""
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
