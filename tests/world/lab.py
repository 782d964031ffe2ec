"""A Jupyter on loopback, JupyterLab or the classic notebook, with a home of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from tests.world import notebooks, zygote
from tests.world.jobs import until
from tests.world.ports import free_port

_COMMON = "--no-browser --ip=127.0.0.1 --allow-root"
_LAB = (
    "-m jupyterlab --IdentityProvider.token= --ServerApp.password= --LabApp.news_url= "
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
)
_CLASSIC = "-m notebook --NotebookApp.token= --NotebookApp.password="


class Lab:
    """A running JupyterLab."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.settings = folder / "settings"
        self.prefer("apputils-extension/notification", fetchNews="false", checkForUpdates=False)
        # all cells stay in the page, also those that cannot be seen
        self.prefer("notebook-extension/tracker", windowingMode="none")

    def prefer(self, plugin: str, **values: object) -> None:
        """Set what a user can set; a page that is loaded later has it."""
        path = self.settings / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


@contextmanager
def serve(folder: Path, *, classic: Path | None = None, **environment: str) -> Iterator[Lab]:
    """JupyterLab in a folder, or the classic notebook of another Python; kernels end with it."""
    port = free_port()
    lab = Lab(folder, port)
    own = {"JUPYTERLAB_SETTINGS_DIR": str(lab.settings), **environment}
    with open(folder / "lab.log", "w") as log:
        process = subprocess.Popen(
            [
                classic or zygote.interpreter(),
                *(_CLASSIC if classic else _LAB).split(),
                *_COMMON.split(),
                f"--port={port}",
            ],
            cwd=folder,
            env=notebooks.surroundings(folder, **own),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: _answers(lab.url))
        yield lab
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/api", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
