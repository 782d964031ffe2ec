"""Serve the page on a dataset at a port of this machine."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from cahlib.browse.app import Browser, create_browse_app
from cahlib.browse.browsed import BrowsedDataset
from cahlib.browse.guard import Guard
from cahlib.browse.marks import Marks
from cahlib.browse.search_model import SearchModel
from cahlib.core.errors import ConfigError
from cahlib.core.run_directory import RunDirectory
from cahlib.dataset.storage.files import files_at


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowseSettings:
    """The settings that a page is opened with."""

    host: str = "127.0.0.1"
    port: int = 0  #: 0: any that is free
    marks: str = ""  #: the file of the marks; "" is that beside the dataset
    model: str = ""  #: the model to search by: a further one, or where the dataset's own is
    pretrained: str = ""
    framed: bool = False  #: the page may be shown in a notebook's frame


def open_browser(place: str, settings: BrowseSettings) -> Browser:
    """Read a dataset; raise ConfigError if there is none, or for a file of marks that is none."""
    dataset = BrowsedDataset(place, settings.model, settings.pretrained)
    model = SearchModel(place, dataset.searched, settings.model, settings.pretrained)
    return Browser(dataset, Marks(_marks_file(place, settings.marks)), model)


@contextmanager
def serving_page(browser: Browser, settings: BrowseSettings) -> Iterator[str]:
    """Serve the page meanwhile, on a thread of its own; provide its address."""
    with listen(settings.host, settings.port) as listener:
        guard = Guard(host=settings.host, framed=settings.framed)
        runner = web.AppRunner(
            create_browse_app(browser, guard), access_log=None, shutdown_timeout=1.0
        )
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="browse", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(_start(runner, listener), loop).result()
            yield page_address(listener, guard)
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _start(runner: web.AppRunner, listener: socket.socket) -> None:
    await runner.setup()
    await web.SockSite(runner, listener).start()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise ConfigError if the port is not free."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port: {port} is not a port; give 1 to 65535, or 0 for any.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        cause = error.strerror or error
        raise ConfigError(
            f"cannot listen on {host}:{port} ({cause}); give another --port, or leave it out."
        ) from error


def page_address(listener: socket.socket, guard: Guard) -> str:
    """Return the address to open, with the token."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/?token={guard.token}"


def _marks_file(place: str, given: str) -> Path:
    """Return the file of the marks: beside the run's files, or here for a dataset at a URL."""
    if given:
        path = Path(given).expanduser()
        if not path.parent.is_dir():
            raise ConfigError(
                f"marks: there is no folder {path.parent}; create it, or choose another file."
            )
        return path
    folder = files_at(place).folder
    if folder:
        return RunDirectory(folder).marks
    return Path(f"{place.partition('?')[0].rstrip('/').rpartition('/')[2] or 'dataset'}-marks.txt")
