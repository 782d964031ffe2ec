"""The load of this machine, and the space that the dataset takes, read now and then."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cahlib.core.run_directory import RunDirectory
from cahlib.run.disk_space import folder_size, format_size, free_space

#: Seconds between two looks: each walks through the dataset's files.
_AGAIN = 15.0

_SMI = "nvidia-smi --query-gpu=name,memory.used,memory.total --format=csv,noheader,nounits".split()


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """The state of the machine at one moment."""

    gpus: tuple[str, ...] = ()  #: a line on each; none where there is none
    free: int | None = None  #: bytes of the dataset's disk; None if it does not tell
    size: int = 0  #: bytes of the dataset

    def __str__(self) -> str:
        left = [] if self.free is None else [f"{format_size(self.free)} of disk left"]
        return " · ".join([*self.gpus, *left])


class MachineMonitor:
    """Looks at the machine, but not too often."""

    def __init__(self, *, gpu: bool) -> None:
        self._gpu, self._at, self._of, self._last = gpu, 0.0, Path(), MachineState()

    def read(self, dataset: Path) -> MachineState:
        """Return what was seen last, if that was just now and of the same dataset."""
        if dataset != self._of or time.monotonic() - self._at > _AGAIN:
            gpus = tuple(parse_gpus(_asked())) if self._gpu else ()
            free = None
            with suppress(OSError):
                free = free_space(dataset)
            size = folder_size(dataset, but=RunDirectory(dataset).path)
            self._last = MachineState(gpus=gpus, free=free, size=size)
            self._at, self._of = time.monotonic(), dataset
        return self._last


def parse_gpus(csv: str) -> list[str]:
    """Return a line on each GPU from nvidia-smi's answer: name, MiB used, MiB in all."""
    found = []
    for line in csv.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
            used, whole = (int(part) * 2**20 for part in parts[1:])
            found.append(f"{parts[0]}: {format_size(used)} of {format_size(whole)} in use")
        elif parts[0]:
            found.append(parts[0])
    return found


def _asked() -> str:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(_SMI, capture_output=True, text=True, timeout=5, check=True).stdout
    return ""
