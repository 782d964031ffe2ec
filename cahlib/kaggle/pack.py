"""Pack what is pushed: a notebook with its settings, and a private input: ticket, wheel, state.

Everything is searched for secrets first. This module does not know the service.
"""

from __future__ import annotations

import json
import re
import sqlite3
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from cahlib.core.config import Job, Output, replace_settings
from cahlib.core.errors import ConfigError
from cahlib.core.run_directory import RunDirectory
from cahlib.dataset.description import DESCRIPTION_FILE
from cahlib.dataset.layout import LAYOUT, MANIFESTS
from cahlib.kaggle.in_kernel import STATE_ARCHIVE, TICKET_NAME
from cahlib.swarm import wheel

#: The path of a kernel's dataset; /kaggle/working is its output.
KERNEL_OUTPUT = "/kaggle/working/dataset"

#: The first cell: it installs this machine's cahlib, and the Dask version of its nodes.
_INSTALL = """\
# cahlib as it is on the machine of kaggle.sh; what Kaggle brings along stays as it is
import glob, os, sys

(wheel,) = glob.glob("/kaggle/input/**/cahlib-*.whl", recursive=True)
kept = "^(torch|torchvision|numpy|pillow|ipywidgets)=="
!{sys.executable} -m pip list --format=freeze | grep -iE "{kept}" > /tmp/kept.txt
!cat "{os.path.dirname(wheel)}/pins.txt" >> /tmp/kept.txt
!{sys.executable} -m pip install --quiet --constraint /tmp/kept.txt \\
    "cahlib[gpu,swarm,notebook] @ file://{wheel}"
"""

_SETTINGS = """\
# written by kaggle.sh
from cahlib.kaggle.in_kernel import receive_settings

settings = receive_settings(
    {values},
    session={session!r},
    hours={hours},
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSource:
    """The source files of a kernel."""

    notebook: Path
    metadata: Path


def write_kernel(
    folder: Path,
    source: KernelSource,
    values: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    session: str,
) -> None:
    """Write a kernel's folder; ``about`` replaces entries of the metadata."""
    told = json.loads(source.metadata.read_text(encoding="utf-8")) | dict(about)
    (folder / "kernel-metadata.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    made = build_notebook(source.notebook, values, hours=values["hours"], session=session)
    (folder / told["code_file"]).write_text(json.dumps(made), encoding="utf-8")


def build_notebook(
    path: Path, values: Mapping[str, Any], *, hours: float, session: str
) -> dict[str, Any]:
    """Return the notebook with the settings in its cell tagged "parameters"."""
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    tagged = [
        cell
        for cell in told["cells"]
        if "parameters" in cell.get("metadata", {}).get("tags", ()) and cell["cell_type"] == "code"
    ]
    if len(tagged) != 1:
        raise ConfigError(f"{path} has {len(tagged)} cells tagged 'parameters'; it must have one.")
    lines = "".join(f"        {name!r}: {value!r},\n" for name, value in values.items())
    tagged[0]["source"] = _SETTINGS.format(
        values=f"{{\n{lines}    }}", hours=hours, session=session
    )
    told["cells"].insert(
        0,
        {
            "cell_type": "code",
            "id": "brought",
            "metadata": {"tags": ["install"]},
            "execution_count": None,
            "outputs": [],
            "source": _INSTALL,
        },
    )
    return told


def kernel_settings(job: Job, *, hours: float, own_swarm: bool, ticket: bool) -> dict[str, Any]:
    """Return a job's settings in the kernel, without defaults."""
    there = replace_settings(
        job,
        output=KERNEL_OUTPUT,
        engine=TICKET_NAME if ticket else "",
        swarm=job.place.swarm if own_swarm else 0,
        cores=job.place.cores if own_swarm else 0,
        wheelhouse="",
        watchdog=False,
        hours=hours,
    )
    plain = Job().values()
    return {n: v for n, v in there.values().items() if v != plain.get(n)} | {
        "output": KERNEL_OUTPUT
    }


def write_inputs(folder: Path, output: Output, ticket: bytes | None) -> None:
    """Write the folder of the private input: ticket, wheel, and the state of the local dataset."""
    wheel.build_wheel(folder)
    pins = re.findall(r"^(?:dask|distributed)==.*\n", wheel.pip_constraints(), flags=re.MULTILINE)
    (folder / "pins.txt").write_text("".join(pins))
    if ticket:
        (folder / TICKET_NAME).write_bytes(ticket)
    if RunDirectory(output.folder).ledger.exists():
        _state(folder / STATE_ARCHIVE, output.folder, metadata=output.duplicates != "keep")


def committed_shard_ids(dataset: Path) -> set[str]:
    """Return the ids of the shards in a local dataset."""
    return {path.stem for path in (dataset / MANIFESTS).glob("*.json")}


def check_no_secrets(folder: Path, secrets: Sequence[str]) -> None:
    """Raise ConfigError if a file holds a secret, also within an archive."""
    given = [secret for secret in secrets if secret]
    forms = {form.encode() for each in given for form in (each, json.dumps(each)[1:-1])}
    for path in sorted(folder.rglob("*")):
        for name, data in _contents(path) if path.is_file() else ():
            if any(form in data for form in forms):
                raise ConfigError(
                    f"nothing was pushed: {name} contains one of your tokens; remove it from "
                    "all settings but HCLOUD_TOKEN."
                )


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    yield path.name, path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield f"{path.name}: {name}", archive.read(name)


def _state(target: Path, dataset: Path, *, metadata: bool) -> None:
    """Pack what a launch needs of earlier ones: the ledger, the manifests and dataset.json.

    The pairs' files stay here, and a list says so. For a job that drops duplicates, the metadata
    tells which images the dataset has; it is sent whole, as nothing that reads columns is installed
    here. The tar has another extension because Kaggle unpacks files called tar.
    """
    copy = target.with_suffix(".sqlite")
    with (
        closing(sqlite3.connect(RunDirectory(dataset).ledger)) as ledger,
        closing(sqlite3.connect(copy)) as other,
    ):
        ledger.backup(other)  # consistent, even if its last writer was killed
    with tarfile.open(target, "w") as pack:
        pack.add(copy, str(RunDirectory().ledger))
        names = "".join(f"{shard}\n" for shard in sorted(committed_shard_ids(dataset))).encode()
        elsewhere = tarfile.TarInfo(str(RunDirectory().elsewhere))
        elsewhere.size = len(names)
        pack.addfile(elsewhere, BytesIO(names))
        if (dataset / DESCRIPTION_FILE).exists():
            pack.add(dataset / DESCRIPTION_FILE, DESCRIPTION_FILE)
        for shard in sorted(committed_shard_ids(dataset)):
            pack.add(dataset / MANIFESTS / f"{shard}.json", f"{MANIFESTS}/{shard}.json")
            table = LAYOUT["metadata"].format(shard)
            if metadata and (dataset / table).exists():  # a shard without pairs has none
                pack.add(dataset / table, table)
    copy.unlink()
