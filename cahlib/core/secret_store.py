"""The store of a run's secrets, apart from its dataset, which people publish.

Keys, tickets and a worker's secret are in a folder that only their owner can read, named after the
run. The name itself stays in the run directory, so that a resumed run finds them again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from cahlib.core.atomic import write_file
from cahlib.core.errors import ConfigError, disk_full_error, is_disk_full

#: The environment variable that names another folder than the one in the user's home.
STATE_VARIABLE = "CAH_STATE"

#: The environment variable with the token of a swarm's watchdog.
WATCHDOG_VARIABLE = "CAH_WATCHDOG_TOKEN"
#: The variables of the environment that no other process is to inherit.
SECRET_VARIABLES = ("HCLOUD_TOKEN", WATCHDOG_VARIABLE)


def run_name_file(own: Path) -> Path:
    """Return the file with the name of a run; ``own`` is one of its folders in DATASET/run."""
    return own / "run"


def run_name(own: Path) -> str:
    """Return the name by which clouds and clusters know a run, stored in its run directory."""
    path = run_name_file(own)
    if not path.exists():
        write_file(path, secrets.token_hex(4))
    return path.read_text()


def secret_path(own: Path, what: str) -> Path:
    """Return the path of a run's secret; ``own`` is one of its folders in DATASET/run.

    A folder that an earlier version left in ``own`` is moved there. Raise ConfigError if there is
    no place for secrets.
    """
    base = _base(own.parent.parent)
    there = base / run_name(own) / what
    try:
        there.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (own / what).is_dir():
            _move(own / what, there)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full_error(base) from error
        raise ConfigError(
            f"{STATE_VARIABLE}: {base} cannot be written ({error.strerror}), and keys must not lie "
            "in the dataset; choose another folder."
        ) from error
    return there


def write_secret(path: Path, secret: str) -> None:
    """Write a secret to a path from `secret_path`."""
    write_file(path, secret, mode=0o600)


def nickname_secret(tracker: str, nickname: str, dataset: Path) -> str:
    """Return the secret that proves to a tracker who owns a nickname, created the first time.

    CAH_NICKNAME_SECRET in the environment takes precedence: it lets machines share a nickname.
    """
    if given := os.environ.get("CAH_NICKNAME_SECRET"):
        return given
    base = _base(dataset)
    name = hashlib.sha256(f"{tracker} {nickname}".encode()).hexdigest()[:32]
    path = base / "nicknames" / name
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f"{name}.{os.getpid()}")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{secrets.token_urlsafe(32)}\n{tracker} {nickname}\n")
        with suppress(FileExistsError):
            os.link(fresh, path)  # the first one wins
        fresh.unlink()
        return path.read_text(encoding="utf-8").split("\n")[0]
    except OSError as error:
        if is_disk_full(error):
            raise disk_full_error(base) from error
        raise ConfigError(
            f"{STATE_VARIABLE}: {base} cannot be written ({error.strerror})."
        ) from error


def _base(dataset: Path) -> Path:
    """Return the folder of all secrets: the environment's, else XDG's state folder."""
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    base = Path(os.path.expanduser(os.environ.get(STATE_VARIABLE) or f"{home}/cahlib"))
    if not base.is_absolute():
        raise ConfigError(
            f"{STATE_VARIABLE}: this user has no home folder for keys; give the "
            "absolute path of a folder."
        )
    if base.resolve().is_relative_to(dataset.resolve()):
        raise ConfigError(
            f"{STATE_VARIABLE}: {base} is inside the dataset's folder, which people publish; "
            "choose another folder."
        )
    return base


def _move(old: Path, there: Path) -> None:
    """Move a folder atomically, also to another disk."""
    if not there.exists():
        fresh = there.with_name(f"{there.name}.{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(old, fresh)  # keeps file permissions
        fresh.replace(there)
    shutil.rmtree(old)
