"""A look through a finished dataset: the page of `cah browse` in a frame, or a gallery with pages.

Jupyter on this machine may show a page at one of its ports. Colab and Kaggle run elsewhere, and
show what is in the notebook alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from cahlib.core.errors import CahError, missing_library_error
from cahlib.notebook.view import figure_html

if TYPE_CHECKING:
    from cahlib.browse.browsed import BrowsedDataset

#: Pairs of a page of the gallery.
_PAGE = 18
_FRAME = (
    '<div class="cah"><p>The page is also at <a href="{0}" target="_blank">this address</a> of the '
    'machine that runs the notebook.</p><iframe title="The dataset" src="{0}" width="100%" '
    'style="height: 80vh"></iframe></div>'
)
_ORDERS = {
    "dataset order": ("", True),
    "most similar first": ("similarity", True),
    "least similar first": ("similarity", False),
}


class DatasetView:
    """The view that a click on “Look through it” shows."""

    def __init__(self, folder: Callable[[], Path], runtime: str) -> None:
        """``folder`` returns that of the dataset, ``runtime`` is the name of the notebook's."""
        self._folder, self._in_frame = folder, runtime == "Jupyter"
        self._served = ExitStack()
        self._dataset: BrowsedDataset | None = None
        self._start = 0
        self.page = widgets.HTML()
        self.where = widgets.Text(
            description="filter", placeholder="similarity > 0.3", continuous_update=False
        )
        self.order = widgets.Dropdown(options=list(_ORDERS), description="order")
        self.back = widgets.Button(description="Previous")
        self.more = widgets.Button(description="Next")
        self._tools = widgets.HBox(
            [self.where, self.order, self.back, self.more],
            layout=widgets.Layout(flex_flow="row wrap", display="none"),
        )
        self.box = widgets.VBox([self._tools, self.page])
        self.back.on_click(lambda _: self._turn(-_PAGE))
        self.more.on_click(lambda _: self._turn(_PAGE))
        for each in (self.where, self.order):
            each.observe(lambda _: self._turn(None), "value")

    def open(self) -> str:
        """Show the dataset as it is now, and return a sentence; raise CahError if it cannot be."""
        try:
            from cahlib.browse.browsed import BrowsedDataset
            from cahlib.browse.server import BrowseSettings, open_browser, serving_page
        except ModuleNotFoundError as error:
            raise missing_library_error(error, "query") from error
        folder = str(self._folder())
        self.close()
        if self._in_frame:
            settings = BrowseSettings(framed=True)
            address = self._served.enter_context(
                serving_page(open_browser(folder, settings), settings)
            )
            self.page.value = _FRAME.format(escape(address))
        else:
            self._dataset = BrowsedDataset(folder)
            self._tools.layout.display = None
            self._turn(None)
        return "The dataset is shown below."

    def close(self) -> None:
        """End the server of a page that was shown before."""
        self._served.close()

    def _turn(self, rows: int | None) -> None:
        """Show another page of the gallery; None is the first."""
        if self._dataset is None:
            return
        from cahlib.browse.browsed import View

        sort, descending = _ORDERS[self.order.value]
        view = View(where=self.where.value.strip(), sort=sort, descending=descending)
        try:
            self._dataset.require_unchanged()
            found = self._dataset.find(view).rows
            start = 0 if rows is None else self._start + rows
            self._start = max(0, min(start, (len(found) - 1) // _PAGE * _PAGE))
            shown = found[self._start : self._start + _PAGE].tolist()
            figures = "".join(map(self._figure, shown, self._dataset.read(shown)))
        except CahError as error:
            self.page.value = f'<div class="cah"><div class="bad">{escape(str(error))}</div></div>'
            return
        counted = f"{self._start + 1:,} to {self._start + len(shown):,} of {len(found):,}"
        counted = counted if shown else "No pair matches."
        self.page.value = (
            f'<div class="cah"><p>{counted}</p><div class="pairs">{figures}</div></div>'
        )
        self.back.disabled = self._start == 0
        self.more.disabled = self._start + _PAGE >= len(found)

    def _figure(self, row: int, pair: dict[str, Any]) -> str:
        from cahlib.dataset.write.gallery import make_thumbnail

        assert self._dataset
        part, position = self._dataset.query.locate(row)
        unsafe = pair.get("NSFW") != "UNLIKELY"
        try:
            data = self._dataset.pictures.read(part.shard, position).data
            jpeg = make_thumbnail(data, blur=unsafe).jpeg
        except (CahError, OSError) as error:
            return f"<figure><figcaption>{escape(str(error))}</figcaption></figure>"
        shown = {
            "jpeg": jpeg,
            "clear": "",
            "text": pair.get("TEXT") or "",
            "nsfw": pair.get("NSFW") or ("not judged" if unsafe else ""),
            "similarity": pair.get("similarity") or 0,
        }
        return figure_html(shown, False)
