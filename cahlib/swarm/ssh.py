"""SSH to one node: commands, file transfers and log tails, each within a deadline.

The host key is known before the first connection, and no other is accepted. It does not know what
is run.
"""

from __future__ import annotations

import io
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import paramiko

from cahlib.core.errors import RunError
from cahlib.core.retry import retry
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import USER

#: Paramiko's own threads may raise any of these when a link breaks.
_SSH_ERRORS = (paramiko.SSHException, OSError, EOFError)

_RETRY_INTERVAL = 0.5


class Unreachable(RunError):
    """A node does not answer, or its host key is not the one created for it."""


class CommandFailed(RunError):
    """A command on a node failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """The address and keys to log in to a node."""

    name: str
    address: str
    keys: SwarmKeys
    port: int = 22

    def command(self, known_hosts: Path) -> list[str]:
        """Return the OpenSSH command line that logs in, after writing ``known_hosts`` for it."""
        pinned = self.keys.host(self.name).public.read_text().split()[:2]
        place = self.address if self.port == 22 else f"[{self.address}]:{self.port}"
        known_hosts.write_text(f"{place} {' '.join(pinned)}\n")
        options = (
            f"UserKnownHostsFile={known_hosts}",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
        )
        return [
            "ssh", "-i", str(self.keys.ssh().private), "-p", str(self.port),
            *(word for option in options for word in ("-o", option)),
            f"{USER}@{self.address}",
        ]  # fmt: skip


class SshSession:
    """An open connection to a node."""

    def __init__(self, client: paramiko.SSHClient, name: str) -> None:
        self._client, self._name = client, name

    def run(self, command: str | Sequence[str], *, timeout: float = 60, stdin: bytes = b"") -> str:
        """Return a command's output; raise CommandFailed, with its end, for an exit code but 0."""
        line = command if isinstance(command, str) else shlex.join(command)
        try:
            given, out, _ = self._client.exec_command(line, timeout=timeout)
            # both streams in one, and read before the exit status: with a full pipe it never exits
            channel = out.channel
            channel.set_combine_stderr(True)
            given.write(stdin)
            given.close()
            text = _read_output(channel, time.monotonic() + timeout)
            status = channel.recv_exit_status() if text is not None else None
        except _SSH_ERRORS as error:
            raise Unreachable(f"{self._name}: the connection broke ({error}).") from error
        if text is None:
            raise CommandFailed(f"{self._name}: `{_short(line)}` took longer than {timeout:g} s.")
        if status:
            raise CommandFailed(
                f"{self._name}: `{_short(line)}` failed ({status}):\n{_last_lines(text)}"
            )
        return text

    def put(self, files: Sequence[tuple[Path | bytes, str]], *, timeout: float = 600) -> None:
        """Copy files, or bytes, to paths on the node; the folders must exist."""
        with self._files(timeout) as sftp:
            for source, target in files:
                part = f"{target}.part"
                data = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
                with data:
                    sftp.putfo(data, part)
                sftp.chmod(part, 0o600)
                sftp.posix_rename(part, target)

    def get(self, source: str, target: Path, *, timeout: float = 600) -> None:
        """Copy a file from the node."""
        part = target.with_name(f"{target.name}.part")
        with self._files(timeout) as sftp:
            sftp.get(source, str(part))
        part.replace(target)

    def tail(self, path: str, *, lines: int = 20, timeout: float = 20) -> str:
        """Return the last lines of a log; "" if it does not exist."""
        return self.run(f"tail -n {lines} -- {shlex.quote(path)} 2>/dev/null || true",
                        timeout=timeout)  # fmt: skip

    @contextmanager
    def _files(self, timeout: float) -> Iterator[paramiko.SFTPClient]:
        try:
            with self._client.open_sftp() as sftp:
                channel = sftp.get_channel()
                if channel:
                    channel.settimeout(timeout)
                yield sftp
        except _SSH_ERRORS as error:
            raise Unreachable(f"{self._name}: a file could not be copied ({error}).") from error


@contextmanager
def ssh_session(login: Login, *, timeout: float = 20) -> Iterator[SshSession]:
    """Connect to a node, in one attempt; raise Unreachable."""
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    kind, key = login.keys.host(login.name).public.read_text().split()[:2]
    place = login.address if login.port == 22 else f"[{login.address}]:{login.port}"
    entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{place} {kind} {key}")
    if entry is None or entry.key is None:
        raise Unreachable(f"{login.name}: its host key in the run's folder is not readable.")
    client.get_host_keys().add(place, kind, entry.key)
    try:
        client.connect(
            login.address,
            login.port,
            USER,
            key_filename=str(login.keys.ssh().private),
            timeout=timeout,
            banner_timeout=timeout,
            auth_timeout=timeout,
            allow_agent=False,
            look_for_keys=False,
        )
        transport = client.get_transport()
        if transport:
            transport.set_keepalive(15)
    except paramiko.BadHostKeyException as error:
        client.close()
        raise Unreachable(
            f"{login.name}: {login.address} has another host key than the one created for it; "
            "do not trust that machine."
        ) from error
    except _SSH_ERRORS as error:
        client.close()
        raise Unreachable(f"{login.name}: no SSH to {login.address} ({error}).") from error
    try:
        yield SshSession(client, login.name)
    finally:
        client.close()


def await_ssh(login: Login, *, timeout: float) -> None:
    """Wait until a node answers SSH; raise Unreachable with the last error."""

    def log_in() -> None:
        with ssh_session(login, timeout=min(10, timeout)):
            pass

    try:
        retry(log_in, errors=Unreachable, pauses=repeat(_RETRY_INTERVAL), timeout=timeout)
    except Unreachable as error:
        raise Unreachable(f"no SSH within {timeout:g} s; {error}") from error


def _read_output(channel: paramiko.Channel, deadline: float) -> str | None:
    """Return all output of a command, or None if it does not end in time."""
    parts = list[bytes]()
    while True:
        channel.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            part = channel.recv(65_536)
        except TimeoutError:
            channel.close()
            return None
        if not part:
            return b"".join(parts).decode("utf-8", "replace")
        parts.append(part)


def _short(line: str) -> str:
    return line if len(line) < 80 else f"{line[:77]}..."


def _last_lines(text: str, lines: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
