"""Where the secrets of a run lie: apart from its dataset, which people publish.

Keys, tickets and a worker's secret are in a folder that only their owner reads, by the name of the
run. That name stays beside the dataset, so that a run that goes on finds them again. It does not
know what they open.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from cahlib.core.atomic import write_file
from cahlib.core.errors import ConfigError, is_full, no_space

#: Names another folder than the one in the user's home.
FOLDER = "CAH_STATE"

#: The variable with the token of a swarm's watchdog.
WATCHDOG = "CAH_WATCHDOG_TOKEN"


def named(own: Path) -> str:
    """The name by which clouds and clusters know a run: the same as long as its folder is there."""
    path = own / "run"
    if not path.exists():
        write_file(path, secrets.token_hex(4))  # without a name, all runs would be one
    return path.read_text()


def place(own: Path, what: str) -> Path:
    """Return where a secret of a run lies; ``own`` is one of its folders in DATASET/run.

    A folder that an earlier version left in ``own`` is moved there. Raises ConfigError where there
    is no place for secrets.
    """
    base = _base(own.parent.parent)
    there = base / named(own) / what
    try:
        there.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (own / what).is_dir():
            _move(own / what, there)
    except OSError as error:
        if is_full(error):
            raise no_space(base) from error
        raise ConfigError(
            f"{FOLDER}: {base} cannot be written ({error.strerror}), and keys must not lie in the "
            "dataset; name another folder."
        ) from error
    return there


def keep(path: Path, secret: str) -> None:
    """Write a secret where `place` said."""
    write_file(path, secret, mode=0o600)


def of_nickname(tracker: str, nickname: str, dataset: Path) -> str:
    """Return the secret that shows a tracker whose a nickname is; one is made the first time.

    The environment's CAH_NICKNAME_SECRET comes first: so several machines share a nickname.
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
            os.link(fresh, path)  # the first one stays
        fresh.unlink()
        return path.read_text(encoding="utf-8").split("\n")[0]
    except OSError as error:
        if is_full(error):
            raise no_space(base) from error
        raise ConfigError(f"{FOLDER}: {base} cannot be written ({error.strerror}).") from error


def _base(dataset: Path) -> Path:
    """The folder of all secrets: as the environment says, else as XDG has it."""
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    base = Path(os.path.expanduser(os.environ.get(FOLDER) or f"{home}/cahlib"))
    if not base.is_absolute():
        raise ConfigError(
            f"{FOLDER}: there is no home folder here in which keys could lie; name a folder, by "
            "its whole path."
        )
    if base.resolve().is_relative_to(dataset.resolve()):
        raise ConfigError(
            f"{FOLDER}: {base} is in the dataset's folder, which people publish; name another one."
        )
    return base


def _move(old: Path, there: Path) -> None:
    """Move a folder, to another disk too; whole or not at all."""
    if not there.exists():
        fresh = there.with_name(f"{there.name}.{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(old, fresh)  # with the rights of its files
        fresh.replace(there)
    shutil.rmtree(old)
