"""A PostgreSQL server of our own: private folder, private port, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.world.ports import free_port


def missing() -> str | None:
    """Why there can be no server here, in a sentence; None if there can."""
    if _folder() is None:
        return "PostgreSQL is not installed; type: apt-get install postgresql"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL refuses to run as root, and there is no user postgres"
    return None


def _folder() -> Path | None:
    """Where initdb and pg_ctl are: Debian keeps them out of the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


def _user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


class Postgres:
    """A running server; ``restart`` is as rude as a power cut."""

    def __init__(self, folder: Path, port: int, *, durable: bool) -> None:
        self._folder, self.port = folder, port
        self._options = f"-p {port} -h 127.0.0.1 -k {folder}"
        if not durable:  # only a power cut needs fsync, and tests have none
            self._options += " -c fsync=off"

    def url(self, name: str = "postgres") -> str:
        """A database's address, for SQLAlchemy."""
        return f"postgresql+psycopg://crowd@127.0.0.1:{self.port}/{name}"

    @property
    def pid(self) -> int:
        """The process of the server."""
        return int((self._folder / "data/postmaster.pid").read_text().split()[0])

    def init(self) -> None:
        """Make the server's folder."""
        options = [
            "--username=crowd",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]
        self._run("initdb", *options)

    def start(self) -> None:
        """Start, and wait until it answers."""
        log = str(self._folder / "log")
        self._run("pg_ctl", "start", "--wait", "-l", log, "-o", self._options)

    def stop(self) -> None:
        """Stop at once, as if it had crashed."""
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def restart(self) -> None:
        """Crash, and come back."""
        self.stop()
        self.start()

    def create(self, name: str, *, template: str = "template1") -> str:
        """A fresh database, a copy of its template; its URL."""
        import psycopg

        with psycopg.connect(self.url().replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        folder = _folder()
        assert folder is not None
        command: Sequence[str] = [
            str(folder / program),
            "-D",
            str(self._folder / "data"),
            *arguments,
        ]
        user = _user() if os.geteuid() == 0 else None
        who = (
            {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        )
        ran = subprocess.run(
            command, cwd=self._folder, stdout=subprocess.PIPE if program == "initdb" else None,
            stderr=subprocess.STDOUT, check=False, **who,
        )  # fmt: skip
        assert ran.returncode == 0, (program, ran.stdout)


@contextmanager
def postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A server for as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="cah-pg-"))
    user = _user()
    if os.geteuid() == 0 and user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    server = Postgres(folder, free_port(), durable=durable)
    try:
        server.init()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
