"""Choose pairs of a dataset by a rule: a condition, caps per group, and the best of what is left.

Nothing is changed here. The steps are applied in that order, so a share is one of the pairs that
meet the condition and the caps. Equal values are decided by the order in the dataset, so a rule
always chooses the same pairs.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cahlib.core.errors import ConfigError
from cahlib.core.wording import plural
from cahlib.dataset.query import PairQuery

#: A share or a number of pairs.
_TOP = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*(%?)")

#: The edges of the groups by the shorter side of the stored image, in pixels.
_SIDES = (128, 256, 512, 1024)


class UidList(NamedTuple):
    """Pairs that are listed, by a person as a rule."""

    uids: frozenset[str]
    keep: bool  #: whether they are those that stay, or those that go

    def as_list(self) -> list[Any]:
        """Return what identifies the list, as JSON has it."""
        digest = hashlib.sha256("\n".join(sorted(self.uids)).encode()).hexdigest()
        return ["keep" if self.keep else "leave out", len(self.uids), digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRule:
    """The rule that decides which pairs stay."""

    where: tuple[str, ...] = ()  #: conditions in SQL, which a pair must all meet
    listed: tuple[UidList, ...] = ()
    caps: tuple[tuple[str, int], ...] = ()  #: the most pairs for each value of an expression
    top: str = ""  #: "30%" or "5000", of the pairs that are left; all if empty
    by: str = "similarity"  #: what is best, for caps and top: the largest
    per: str = ""  #: an expression: top is of each group with the same value

    def as_dict(self) -> dict[str, Any]:
        """Return the rule as JSON has it."""
        caps = [[name, most] for name, most in self.caps]
        listed = {"listed": [each.as_list() for each in self.listed]} if self.listed else {}
        return {
            "where": [*self.where], "caps": caps, "top": self.top, "by": self.by, "per": self.per,
            **listed,
        }  # fmt: skip


class GroupCount(NamedTuple):
    """The number of pairs in a group, and of those that stay."""

    name: str
    pairs: int
    stay: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The pairs that a rule chooses."""

    pairs: PairQuery
    rule: SelectionRule
    stays: NDArray[np.bool_]  #: by row
    steps: tuple[tuple[str, int], ...]  #: what was applied, and how many pairs were left after it
    values: NDArray[np.float64]  #: what the pairs are compared by; NaN if they are not

    @property
    def count(self) -> int:
        """The number of pairs that stay."""
        return int(self.stays.sum())

    def cut(self) -> float | None:
        """Return the least value of a pair that stays, or None if none has one."""
        kept = self.values[self.stays & np.isfinite(self.values)]
        return float(kept.min()) if len(kept) else None

    def edge(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of the pairs nearest to the cut: the least that stay, the best that go.

        Each nearest first.
        """
        known = np.isfinite(self.values)
        kept, gone = np.flatnonzero(self.stays & known), np.flatnonzero(~self.stays & known)
        lowest = kept[np.argsort(self.values[kept], kind="stable")[:count]]
        highest = gone[np.argsort(-self.values[gone], kind="stable")[:count]]
        return lowest, highest

    def languages(self) -> list[GroupCount]:
        """Return the pairs by language, the most frequent first."""
        return self._by_text("language")

    def domains(self) -> list[GroupCount]:
        """Return the pairs by registered domain, the most frequent first."""
        return self._by_text("domain")

    def sides(self) -> list[GroupCount]:
        """Return the pairs by the shorter side of their images, the shortest first."""
        if not {"WIDTH", "HEIGHT"} <= self.pairs.columns.keys():
            return []
        side = np.nan_to_num(self.pairs.numbers("least(WIDTH, HEIGHT)"))
        names = [
            f"below {_SIDES[0]} pixels",
            *(f"{low} to {high - 1} pixels" for low, high in zip(_SIDES, _SIDES[1:], strict=False)),
            f"{_SIDES[-1]} pixels and more",
        ]
        return [each for each in self._counted(np.digitize(side, _SIDES), names) if each.pairs]

    def _by_text(self, column: str) -> list[GroupCount]:
        if column == "language" and column not in self.pairs.columns:
            return []
        texts = self.pairs.texts(column)
        names = [str(each) for each in texts.dictionary.to_pylist()]
        found = self._counted(np.asarray(texts.indices), names)
        return sorted(found, key=lambda each: (-each.pairs, each.name))

    def _counted(self, codes: NDArray[Any], names: list[str]) -> list[GroupCount]:
        every = np.bincount(codes, minlength=len(names)).tolist()
        stay = np.bincount(codes[self.stays], minlength=len(names)).tolist()
        return [GroupCount(*each) for each in zip(names, every, stay, strict=True)]


def select_pairs(pairs: PairQuery, rule: SelectionRule) -> Selection:
    """Apply a rule; raise ConfigError if it is not valid for these pairs."""
    share = _share(rule.top)
    if rule.per and not share:
        raise ConfigError("per: it applies --top to each group; give --top as well.")
    stays, steps = np.ones(pairs.rows, bool), list[tuple[str, int]]()
    for condition in rule.where:
        pairs.type_of(condition)  # an empty one is a mistake here
        stays = stays & pairs.mask(condition)
        steps.append((" ".join(condition.split()), int(stays.sum())))
    for some in rule.listed:
        is_in = pc.is_in(pairs.evaluate("uid"), value_set=pa.array([*some.uids], pa.string()))
        stays = stays & (is_in.to_numpy() == some.keep)
        how = "among" if some.keep else "not among"
        steps.append((f"{how} {plural(len(some.uids), 'listed uid')}", int(stays.sum())))
    values = _values(pairs, rule)
    best = np.argsort(-values, kind="stable")  # NaN is last
    for name, most in rule.caps:
        if most < 1:
            raise ConfigError(f"max-per: give at least 1 pair for each {name}, not {most}.")
        codes = np.asarray(pairs.texts(pairs.quoted(name), "max-per").indices)
        stays = _limited(stays, best, codes, np.full(codes.max(initial=-1) + 1, most))
        steps.append((f"at most {most:,} for each {name}", int(stays.sum())))
    if share:
        stays = stays & np.isfinite(values)
        codes = np.zeros(pairs.rows, np.int64)
        if rule.per:
            codes = np.asarray(pairs.texts(pairs.quoted(rule.per), "per").indices)
        counts = np.bincount(codes[stays])
        most_of = np.array([share(each) for each in counts.tolist()], np.int64)
        stays = _limited(stays, best, codes, most_of)
        each = f" for each {rule.per}" * bool(rule.per)
        steps.append((f"top {rule.top} by {rule.by}{each}", int(stays.sum())))
    return Selection(pairs=pairs, rule=rule, stays=stays, steps=tuple(steps), values=values)


def _values(pairs: PairQuery, rule: SelectionRule) -> NDArray[np.float64]:
    """Return what pairs are compared by, which a rule that compares none need not have."""
    if not (rule.top or rule.caps) and rule.by not in pairs.columns:
        return np.full(pairs.rows, np.nan)
    values = pairs.numbers(pairs.quoted(rule.by))
    if (rule.top or rule.caps) and pairs.rows and not np.isfinite(values).any():
        raise ConfigError(f"by: no pair has a value in {rule.by}; choose another column with --by.")
    return np.where(np.isfinite(values), values, np.nan)


def _limited(
    stays: NDArray[np.bool_],
    best: NDArray[np.int64],
    codes: NDArray[Any],
    most_of: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Keep the first pairs of each group, as many as it may have; ``best`` is their order."""
    rows = best[stays[best]]
    rows = rows[np.argsort(codes[rows], kind="stable")]
    groups = codes[rows]
    starts = np.cumsum(np.bincount(groups, minlength=len(most_of))) if len(rows) else most_of
    rank = np.arange(len(rows)) - np.concatenate([[0], starts])[groups]
    left = np.zeros_like(stays)
    left[rows[rank < most_of[groups]]] = True
    return left


def _share(top: str) -> Any:
    """Return a function from the pairs of a group to how many stay; None if all do."""
    if not top:
        return None
    found = _TOP.fullmatch(top.strip())
    number = Fraction(found[1]) if found else Fraction(0)
    if found and found[2] and 0 < number <= 100:
        return lambda pairs: math.ceil(pairs * number / 100)
    if found and not found[2] and number >= 1 and number.denominator == 1:
        return lambda pairs: min(pairs, int(number))
    raise ConfigError(f"top: {top!r} is not a share or a number of pairs, such as 30% or 5000.")
