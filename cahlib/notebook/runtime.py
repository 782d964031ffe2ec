"""The notebook's runtime, Colab, Kaggle or another Jupyter, and its limits for a run."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahlib.core.errors import ConfigError
from cahlib.core.rates import has_gpu

#: The name of Hetzner's token, in the environment and among a notebook's secrets.
TOKEN_VARIABLE = "HCLOUD_TOKEN"

_DRIVE = Path("/content/drive/MyDrive")

#: What to do where there is no GPU.
_SWITCH = {
    "Colab": "Runtime → Change runtime type → T4 GPU, then run all cells again",
    "Kaggle": "Settings → Accelerator → GPU T4 x2, then run all cells again",
    "Jupyter": "start Jupyter on a machine that has one",
}

#: The terms that matter, as they stood in November 2026.
_TERMS = {
    "Colab": "Colab's free tier ends after some 12 hours, or 90 minutes without you or an "
    "executing cell: after Start, run the last cell, which follows the run. Colab forbids "
    "workers of distributed computing, SSH sessions, and going around the notebook. So images are "
    "fetched by servers of your own, and you watch here, in the cell.",
    "Kaggle": "Kaggle gives some 30 hours of GPU a week to accounts with a verified phone; "
    "internet must be on (Settings → Internet). It ends a session in which no cell executes for "
    "20 to 60 minutes: the last cell executes until the run has ended. Of /kaggle/working it keeps "
    "20 GB, and that only if you save a version.",
    "Jupyter": "",
}

_COSTS = (
    "Servers at Hetzner cost money from the moment they are made until they are deleted; cahlib "
    "deletes them when the run ends, and asks the cloud whether they are gone."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A notebook's surroundings."""

    name: str  #: "Colab", "Kaggle" or "Jupyter"
    gpu: bool
    widgets: bool  #: whether somebody may see and click them
    output: str  #: where a dataset is best put

    @property
    def is_idle_soon(self) -> bool:
        """Return whether a session is ended while no cell executes."""
        return self.name in ("Colab", "Kaggle")

    @property
    def follow_seconds(self) -> float:
        """Return the seconds for which a run is waited for: while the form is filled in."""
        return 1800 if self.name == "Kaggle" else 0

    def warning(self, output: str) -> str:
        """Return what becomes of an output here, if it would be lost; else ""."""
        if self.name != "Colab" or "://" in output:
            return ""
        if Path(os.path.abspath(output)).is_relative_to(_DRIVE):
            return (
                f"Written there directly, each file takes its time; file://{_DRIVE}/… brings "
                "finished shards."
            )
        return (
            "This disk vanishes with the runtime, and the dataset with it: mount Drive, or give "
            "a URL (s3://…)."
        )

    @property
    def advice(self) -> str:
        """Return what to do about a missing GPU; "" if there is one."""
        if self.gpu:
            return ""
        return f"There is no GPU, so judging is slow. To have one: {_SWITCH[self.name]}."

    @property
    def terms(self) -> str:
        """Return what the user must know before a start."""
        return f"{_TERMS[self.name]} {_COSTS}".strip()


def detect_runtime(environment: Mapping[str, str] = os.environ) -> Runtime:
    """Return the runtime of this process."""
    name = _name(environment)
    batch = environment.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch"
    return Runtime(
        name=name,
        gpu=has_gpu(),
        widgets=not batch and _asked_by_a_person(),
        output=_output(name),
    )


def mount_drive() -> str:
    """Mount Colab's Drive, which asks the user; return the output that is there then."""
    try:
        found: Any = importlib.import_module("google.colab.drive")
    except ModuleNotFoundError:
        raise ConfigError("output: Drive can be mounted on Colab only.") from None
    try:
        found.mount(str(_DRIVE.parent))
    except Exception as error:  # Colab's own errors; all mean that Drive is not mounted
        raise ConfigError(f"output: Drive was not mounted ({error}); try again.") from error
    return _output("Colab")


def find_token(environment: Mapping[str, str]) -> tuple[str, str]:
    """Hetzner's token and where it was found; two empty texts if it is nowhere."""
    for module, owner in (("google.colab.userdata", "Colab"), ("kaggle_secrets", "Kaggle")):
        if value := _kept(module):
            return value, f"{owner}'s secrets"
    value = environment.get(TOKEN_VARIABLE, "")
    return value, "the environment" if value else ""


def _name(environment: Mapping[str, str]) -> str:
    if "COLAB_RELEASE_TAG" in environment or "COLAB_GPU" in environment:
        return "Colab"
    return "Kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in environment else "Jupyter"


def _output(name: str) -> str:
    if name == "Colab" and _DRIVE.is_dir():
        # as a URL: each shard is written on the fast disk here, and brought there when it is done
        return f"file://{_DRIVE}/dataset"
    return "/kaggle/working/dataset" if name == "Kaggle" else "dataset"


def _asked_by_a_person() -> bool:
    """Return whether the kernel may ask for input; programs that execute notebooks forbid it."""
    try:
        from IPython.core.getipython import get_ipython
    except ModuleNotFoundError:
        return False
    kernel: Any = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))


def _kept(module: str) -> str:
    """Return the token among a notebook's secrets; "" if it is not among them."""
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        return ""
    # offline, or an answer that is none of the service's
    unavailable: tuple[type[Exception], ...] = (OSError, ValueError, *_exceptions_of(found))
    try:
        if module == "kaggle_secrets":
            return str(found.UserSecretsClient().get_secret(TOKEN_VARIABLE) or "")
        return str(found.get(TOKEN_VARIABLE) or "")
    except unavailable:
        return ""


def _exceptions_of(module: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions that a notebook's module defines, and Colab's base of more of them."""
    known = [*vars(module).values(), getattr(getattr(module, "errors", None), "Error", None)]
    return tuple(x for x in known if isinstance(x, type) and issubclass(x, Exception))


def require_internet(runtime: Runtime, *, host: str = "data.commoncrawl.org") -> None:
    """Raise ConfigError where a Kaggle notebook has no internet, which is off at first."""
    if runtime.name != "Kaggle":
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise ConfigError(
            "crawl: this notebook has no internet; switch it on (Settings → Internet; Kaggle asks "
            "for a verified phone), then run all cells again."
        ) from error
