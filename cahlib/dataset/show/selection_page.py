"""Write the page on a selection: how many pairs stay, and those just above and below its cut.

Like the report it is self-contained and loads nothing, and all texts in it are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from cahlib.core.wording import plural
from cahlib.dataset.maintain.selection import GroupCount, Selection
from cahlib.dataset.manifest import host_name
from cahlib.dataset.show.summary import percentage
from cahlib.dataset.write.columns import Row
from cahlib.dataset.write.gallery import Thumbnail

#: What marks a page that may be replaced.
GENERATOR = '<meta name="generator" content="cahlib">'

#: Groups of each kind, and characters of a caption, that are shown.
_GROUPS, _CAPTION = 20, 300


class EdgePair(NamedTuple):
    """A pair at the cut."""

    row: Row
    value: float  #: what the pairs are compared by
    thumbnail: Thumbnail | None  #: None if there is no picture, or it cannot be shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The pairs nearest to the cut on both sides, each nearest first."""

    above: Sequence[EdgePair] = ()
    below: Sequence[EdgePair] = ()


def render_selection(
    name: str,
    selection: Selection,
    groups: Mapping[str, Sequence[GroupCount]],
    edge: Edge,
    notes: Iterable[str] = (),
) -> str:
    """Return the page on a selection from the dataset of this name."""
    return _template().render(
        name=name,
        selection=selection,
        pairs=selection.pairs.rows,
        cut=selection.cut(),
        groups={title: counts[:_GROUPS] for title, counts in groups.items() if counts},
        edge=edge,
        notes=[*notes],
        generator=GENERATOR,
    )


@cache
def _template() -> Template:
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {
        "plural": plural, "host": host_name, "share": percentage, "caption": _caption,
    }  # fmt: skip
    return pages.get_template("selection.html")


def _caption(text: str) -> str:
    return text if len(text) <= _CAPTION else text[:_CAPTION] + "…"
