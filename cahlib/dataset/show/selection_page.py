"""Write the page on a selection: how many pairs stay, and those just above and below its cut.

Like the report it is self-contained and loads nothing, and all texts in it are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cahlib.dataset.maintain.selection import GroupCount, Selection
from cahlib.dataset.show.templates import page_template
from cahlib.dataset.write.columns import Row
from cahlib.dataset.write.gallery import Thumbnail

#: Groups of each kind that are shown.
_GROUPS = 20


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
    return page_template("selection.html").render(
        name=name,
        selection=selection,
        pairs=selection.pairs.rows,
        cut=selection.cut(),
        groups={title: counts[:_GROUPS] for title, counts in groups.items() if counts},
        edge=edge,
        notes=[*notes],
    )
