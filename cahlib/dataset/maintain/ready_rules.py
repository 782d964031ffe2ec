"""Rules of published datasets by name, as far as a dataset's metadata has what they need.

Thresholds and sizes are those of the papers: LAION-400M (Schuhmann et al. 2021, arXiv:2111.02114),
LAION-5B (2022, arXiv:2210.08402) and DataComp (Gadre et al. 2023, arXiv:2304.14108) with the code
of its baselines, which shares or keeps what equals a bound.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from cahlib.core.errors import ConfigError
from cahlib.dataset.maintain.selection import SelectionRule
from cahlib.model.score_names import SIMILARITY, score_columns

#: Bytes of a file are no column; a run drops small ones itself.
_BYTES = (
    "The paper's least size of a file, 5 kB, is not in the metadata; a run's own --min-bytes "
    "(5000 by default) applies it."
)
_ENGLISH = "English is what CLD2 found, in place of the paper's own model of languages."


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyRule:
    """The rule of a published dataset."""

    name: str
    source: str
    about: str  #: for help and guides
    conditions: tuple[str, ...] = ()  #: all of them; ``{…}`` is the similarity by a model
    top: str = ""
    by: str = ""  #: ``{…}`` too
    notes: tuple[str, ...] = ()  #: what differs from the source


_B32, _L14 = "ViT-B-32/openai", "ViT-L-14/openai"
_XLM = "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k"

#: The rules, by name.
READY_RULES: Mapping[str, ReadyRule] = {
    rule.name: rule
    for rule in (
        ReadyRule(
            name="laion400m",
            source="arXiv:2111.02114",
            about=f"similarity by {_B32} of 0.3 and more, captions of 5 characters and more",
            conditions=("length(TEXT) >= 5", f"{{{_B32}}} >= 0.3"),
            notes=(_BYTES,),
        ),
        ReadyRule(
            name="laion5b",
            source="arXiv:2210.08402",
            about=f"English with a similarity by {_B32} of 0.28 and more, other languages by "
            f"{_XLM} of 0.26 and more, captions of 5 characters and more",
            conditions=(
                "length(TEXT) >= 5",
                f"CASE WHEN language = 'en' THEN {{{_B32}}} >= 0.28 ELSE {{{_XLM}}} >= 0.26 END",
            ),
            notes=(
                _BYTES,
                _ENGLISH,
                f"For other languages the paper used M-CLIP, in whose place stands {_XLM}.",
            ),
        ),
        ReadyRule(
            name="datacomp-basic",
            source="arXiv:2304.14108",
            about="English captions of more than two words and five characters, images with a "
            "shorter side of 200 pixels and more, at most 3 times as long as wide",
            conditions=(
                "language = 'en'",
                "length(TEXT) > 5 AND len(string_split_regex(trim(TEXT), '\\s+')) > 2",
                "least(original_width, original_height) >= 200",
                "greatest(original_width, original_height) <= "
                "3.0 * least(original_width, original_height)",
            ),
            notes=(_ENGLISH,),
        ),
        ReadyRule(
            name="datacomp-clip30",
            source="arXiv:2304.14108",
            about=f"the 30 % with the highest similarity by {_L14}",
            top="30%",
            by=f"{{{_L14}}}",
        ),
    )
}

#: Similarities that a rule can do without, and what that means.
_OPTIONAL = {_XLM: "pairs in other languages than English go"}


def ready_rule(name: str, columns: Collection[str]) -> tuple[SelectionRule, list[str]]:
    """Return a rule by its name, for these columns, and in sentences what of it is not applied.

    Raise ConfigError if the dataset lacks a score without which the rule means nothing.
    """
    rule, notes = READY_RULES[name], list(READY_RULES[name].notes)
    names = dict[str, str]()
    for model in (_B32, _L14, _XLM):
        if f"{{{model}}}" not in " ".join((*rule.conditions, rule.by)):
            continue
        if column := _similarity_column(model, columns):
            names[model] = column
        elif model in _OPTIONAL:
            notes.append(f"There is no similarity by {model}, so {_OPTIONAL[model]}.")
        else:
            raise ConfigError(
                f"rule: {name} needs the similarity by {model}, which no pair of this dataset has; "
                "score it with that model first (`cah score`)."
            )
    found = SelectionRule(
        where=tuple(_filled(each, names) for each in rule.conditions), top=rule.top
    )
    return (replace(found, by=names[_named(rule.by)]) if rule.by else found), notes


def _similarity_column(model: str, columns: Collection[str]) -> str | None:
    """Return the column of the similarity by a model, or None."""
    base, _, weights = model.partition("/")
    for variant in (f"{base}/{weights}", f"{base}-quickgelu/{weights}"):
        for layout in (2, 1):
            column = score_columns(variant, [SIMILARITY], layout=layout)[SIMILARITY]
            if column in columns:
                return column
    return None


def _filled(condition: str, names: Mapping[str, str]) -> str:
    for model in (_B32, _L14, _XLM):
        column = f'"{names[model]}"' if model in names else "NULL"
        condition = condition.replace(f"{{{model}}}", column)
    return condition


def _named(by: str) -> str:
    return by.strip("{}")
