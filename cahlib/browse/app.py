"""The page on a dataset as a web application: its routes, and what they answer as JSON."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import threading
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.typedefs import Handler
from jinja2 import Environment, StrictUndefined

from cahlib.browse.browsed import BrowsedDataset, View
from cahlib.browse.changes import DatasetChanged
from cahlib.browse.guard import Guard
from cahlib.browse.marks import Marks
from cahlib.browse.search_model import SearchModel
from cahlib.core.errors import CahError, ConfigError
from cahlib.dataset.write.columns import Row
from cahlib.image.header import ImageHeader, read_header

_T = TypeVar("_T")

#: Pairs of a page, and bytes of a picture that is searched by.
_MOST, _LARGEST = 200, 20 << 20
#: Characters of words that are searched by; models read some 77 tokens.
_LONGEST = 1_000
#: The columns of a card, beside the scores.
_CARD = (
    "uid", "URL", "TEXT", "page", "LICENSE", "NSFW", "language", "WIDTH", "HEIGHT", "similarity",
)  # fmt: skip
#: The largest whole number that JavaScript has exactly.
_EXACT = 2**53
_SITE = {"browse.css": "text/css", "browse.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Browser:
    """The state that the routes share: the dataset as it was read last, the marks and the model."""

    def __init__(self, dataset: BrowsedDataset, marks: Marks, model: SearchModel) -> None:
        self.dataset, self.marks, self.model = dataset, marks, model
        self.generation = 0  #: how often the dataset was read anew

    @property
    def name(self) -> str:
        """The last part of the dataset's place."""
        place = self.dataset.place.partition("?")[0].rstrip("/")
        return PurePosixPath(place).name or place

    def reload(self) -> None:
        """Read the dataset anew: its run has gone on, or it was changed."""
        self.dataset = BrowsedDataset(self.dataset.place, *self.dataset.typed)
        self.generation += 1

    def current(self, act: Callable[..., _T], *given: Any) -> _T:
        """Return what is asked of the dataset; raise DatasetChanged if its pairs are others."""
        dataset = self.dataset
        dataset.require_unchanged()
        try:
            return act(*given)
        except CahError as error:
            if not isinstance(error, ConfigError):
                dataset.require_unchanged(failed=True)
            raise

    def about(self) -> dict[str, Any]:
        """Return what the page needs to know at its start."""
        query, fault = self.dataset.query, self.model.fault()
        try:
            nearest = self.dataset.nearest
            vectors = True
            if nearest.is_local:  # so that the first search need not wait for the copy
                threading.Thread(target=nearest.prepare, daemon=True).start()
        except CahError as error:
            vectors, fault = False, str(error)
        return {
            "name": self.name,
            "place": self.dataset.place,
            "pairs": len(self.dataset),
            "shards": len(self.dataset.manifests),
            "columns": [*query.columns],
            "numbers": query.number_columns(),
            "scores": [(label, name) for name, label in self.dataset.scores.items()],
            "pictures": bool(self.dataset.pictures),
            "alike": vectors,
            "words": "" if vectors and not fault else fault,
            "notices": self.dataset.notices(),
            "dropped": self.dataset.dropped.reasons(),
            "generation": self.generation,
            **self.marked(),
        }

    def mark(self, uids: list[str], marked: bool) -> dict[str, Any]:
        """Mark pairs, or take their marks away, and return the state of the marks."""
        self.marks.change(uids, marked=marked)
        return self.marked()

    def marked(self) -> dict[str, Any]:
        """Return the state of the marks."""
        return {"marks": len(self.marks), "file": str(self.marks.path), "fault": self.marks.fault}

    def page(self, view: View, start: int, count: int) -> dict[str, Any]:
        """Return some rows of a view."""
        self._understand(view)
        found = self.dataset.find(view)
        rows = found.rows[start : start + count].tolist()
        items = self.items(rows)
        if found.cosines is not None:
            for item, cosine in zip(items, found.cosines[start : start + count], strict=True):
                item["found"] = round(float(cosine), 4)
        return {"total": len(found.rows), "items": items}

    def items(self, rows: list[int]) -> list[dict[str, Any]]:
        """Return what cards show of rows."""
        read = self.dataset.read(rows, [*_CARD, *self.dataset.scores])
        return [self._item(number, row) for number, row in zip(rows, read, strict=True)]

    def pair(self, row: int) -> dict[str, Any]:
        """Return all columns of a row."""
        if row >= len(self.dataset):
            raise ConfigError("pair: there is no such row.")
        return self.dataset.read([row])[0]

    def bars(self, column: str, view: View) -> dict[str, Any]:
        """Return the histogram of a column over a view."""
        self._understand(view)
        return self.dataset.histogram(column, view)

    def cut(self, column: str, at: float, view: View) -> dict[str, Any]:
        """Return what a cut at a value of a column leaves, with the pairs beside it."""
        self._understand(view)
        found = self.dataset.cut(column, at, view)
        for side in ("above", "below"):
            found[f"items_{side}"] = self.items(found.pop(f"rows_{side}"))
        return found

    def search_by(self, data: bytes) -> str:
        """Take a picture to search by, and return its name for views."""
        if not isinstance(read_header(data), ImageHeader):
            raise ConfigError("picture: give a JPEG, PNG, WebP or AVIF file.")
        name = f"picture:{hashlib.sha256(data).hexdigest()[:20]}"
        if not self.dataset.holds(name):
            self.dataset.hold(name, self.model.picture(data))
        return name

    def _understand(self, view: View) -> None:
        """Compute the vector of a view's words."""
        if view.words and not self.dataset.holds(name := f"words:{view.words}"):
            self.dataset.hold(name, self.model.words(view.words))

    def _item(self, number: int, row: Row) -> dict[str, Any]:
        if "uid" not in row:
            return {"row": number, "fault": f"Shard {row['shard']} cannot be read."}
        return {"row": number, "marked": row["uid"] in self.marks, "pair": row}


def create_browse_app(browser: Browser, guard: Guard) -> web.Application:
    """Return the application; its routes work in threads, so that none waits for another."""
    app = web.Application(middlewares=[guard.middleware(), _errors], client_max_size=_LARGEST)
    routes = _Routes(browser, guard)
    app.add_routes(
        [
            web.get("/", routes.index),
            web.get("/site/{name}", routes.site),
            web.get("/image/{row:[0-9]{1,12}}", routes.image),
            web.get("/api/about", routes.about),
            web.get("/api/pairs", routes.pairs),
            web.get("/api/pair", routes.pair),
            web.get("/api/histogram", routes.histogram),
            web.get("/api/cut", routes.cut),
            web.get("/api/dropped", routes.dropped),
            web.get("/api/marks", routes.marks),
            web.get("/marks.txt", routes.purge_list),
            web.get("/marks.jsonl", routes.selection),
            web.post("/api/marks", routes.mark),
            web.post("/api/picture", routes.picture),
            web.post("/api/reload", routes.reload),
        ]
    )
    return app


class _Routes:
    def __init__(self, browser: Browser, guard: Guard) -> None:
        self._browser = browser
        self._framed = guard.token if guard.framed else ""

    async def index(self, request: web.Request) -> web.Response:
        # in a frame there may be no cookie
        query = f"?{urlencode({'token': self._framed})}" if self._framed else ""
        text = _template().render(
            name=self._browser.name, pairs=len(self._browser.dataset), query=query
        )
        return web.Response(text=text, content_type="text/html")

    async def site(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in _SITE:
            raise web.HTTPNotFound
        return web.Response(text=_site_file(name), content_type=_SITE[name])

    async def image(self, request: web.Request) -> web.Response:
        row, dataset = int(request.match_info["row"]), self._browser.dataset
        if row >= len(dataset):
            raise web.HTTPNotFound
        part, position = dataset.query.locate(row)
        read = dataset.pictures.read
        try:
            found = await asyncio.to_thread(self._browser.current, read, part.shard, position)
        except CahError as error:
            return web.Response(status=404, text=str(error))
        kept = {"Cache-Control": "private, max-age=3600"}
        return web.Response(body=found.data, content_type=found.content_type, headers=kept)

    async def about(self, request: web.Request) -> web.Response:
        return await _answer(self._browser.about)

    async def pairs(self, request: web.Request) -> web.Response:
        start, count = _whole(request, "start", 0), min(_whole(request, "count", 48), _MOST)
        return await self._shown(self._browser.page, _view(request), start, count)

    async def pair(self, request: web.Request) -> web.Response:
        return await self._shown(self._browser.pair, _whole(request, "row", 0))

    async def histogram(self, request: web.Request) -> web.Response:
        column = _column(self._browser, request)
        return await self._shown(self._browser.bars, column, _view(request))

    async def cut(self, request: web.Request) -> web.Response:
        column = _column(self._browser, request)
        try:
            at = float(request.query.get("at", ""))
        except ValueError:
            raise ConfigError("cut: give a number.") from None
        return await self._shown(self._browser.cut, column, at, _view(request))

    async def dropped(self, request: web.Request) -> web.Response:
        start, count = _whole(request, "start", 0), min(_whole(request, "count", 48), _MOST)
        page = self._browser.dataset.dropped.page
        return await self._shown(page, request.query.get("reason", ""), start, count)

    async def marks(self, request: web.Request) -> web.Response:
        return web.json_response(self._browser.marked())

    async def mark(self, request: web.Request) -> web.Response:
        given = await _json(request)
        uids, marked = given.get("uids"), given.get("marked")
        if (
            not isinstance(uids, list)
            or not isinstance(marked, bool)
            or not all(map(_is_uid, uids))
        ):
            raise ConfigError("marks: give a list of uids, and whether they are marked.")
        return await self._shown(self._browser.mark, uids, marked)

    async def purge_list(self, request: web.Request) -> web.Response:
        return _download(self._browser.marks.text(), "marks.txt")

    async def selection(self, request: web.Request) -> web.Response:
        found = await asyncio.to_thread(self._browser.current, self._marked_rows)
        return _download(found, "marks.jsonl")

    async def picture(self, request: web.Request) -> web.Response:
        data = await request.read()
        return web.json_response({"like": await asyncio.to_thread(self._browser.search_by, data)})

    async def reload(self, request: web.Request) -> web.Response:
        await asyncio.to_thread(self._browser.reload)
        return await _answer(self._browser.about)

    async def _shown(self, act: Callable[..., dict[str, Any]], *given: Any) -> web.Response:
        """Answer with what is found in the dataset, if that is as it was read."""
        return await _answer(self._browser.current, act, *given)

    def _marked_rows(self) -> str:
        """Return the metadata of the marked pairs, a line of JSON each."""
        dataset = self._browser.dataset
        rows = dataset.rows_of(self._browser.marks.uids())
        return "".join(json.dumps(plain_values(each)) + "\n" for each in dataset.read(rows))


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer an error with its sentence."""
    try:
        return await handler(request)
    except CahError as error:
        kinds = {ConfigError: 400, DatasetChanged: 409}
        status = next((code for kind, code in kinds.items() if isinstance(error, kind)), 503)
        return web.json_response({"error": str(error)}, status=status)
    except ModuleNotFoundError as error:
        return web.json_response({"error": f"{error.name} is not installed."}, status=503)
    except web.HTTPRequestEntityTooLarge:
        return web.json_response({"error": "picture: give a file of at most 20 MiB."}, status=413)


async def _answer(act: Callable[..., dict[str, Any]], *given: Any) -> web.Response:
    return web.json_response(plain_values(await asyncio.to_thread(act, *given)))


def plain_values(value: Any) -> Any:
    """Return a value as browsers read it: no NaN, and no number that they would round."""
    if isinstance(value, Mapping):
        return {name: plain_values(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) > _EXACT:
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _view(request: web.Request) -> View:
    given = request.query
    words = " ".join(given.get("words", "").split())
    if len(words) > _LONGEST:
        raise ConfigError(f"search: give at most {_LONGEST:,} characters.")
    return View(
        where=given.get("where", "").strip(),
        sort=given.get("sort", "").strip(),
        descending=given.get("order", "desc") != "asc",
        words=words,
        like=given.get("like", ""),
    )


def _whole(request: web.Request, name: str, default: int) -> int:
    given = request.query.get(name, str(default))
    if not (given.isascii() and given.isdecimal() and len(given) < 13):
        raise ConfigError(f"{name}: {given:.40} is not a number of pairs.")
    return int(given)


def _column(browser: Browser, request: web.Request) -> str:
    """Return the column that is asked for, quoted for SQL."""
    name, known = request.query.get("column", ""), browser.dataset.query.number_columns()
    if name not in known:
        raise ConfigError(f"column: {name:.80} is not one of {', '.join(known)}.")
    quoted = name.replace('"', '""')
    return f'"{quoted}"'


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        found = await request.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError("The request body is not a JSON object.")
    return found


def _is_uid(value: object) -> bool:
    return isinstance(value, str) and len(value) == 32 and not set(value) - set("0123456789abcdef")


def _download(text: str, name: str) -> web.Response:
    shown = {"Content-Disposition": f'attachment; filename="{name}"'}
    return web.Response(text=text, content_type="text/plain", headers=shown)


@cache
def _site_file(name: str) -> str:
    return files(__package__).joinpath("site").joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    pages = Environment(autoescape=True, undefined=StrictUndefined)
    return pages.from_string(_site_file("index.html"))
