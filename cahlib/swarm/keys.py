"""The keys of one swarm: for SSH, for its hosts, and its TLS certificates."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cahlib.engine.certificates import Certificates, KeyPair


class SwarmKeys(Certificates):
    """The keys stored in ``folder``; each is created when first requested."""

    __slots__ = ()

    def ssh(self) -> KeyPair:
        """Return the ed25519 key for logins to all nodes."""
        return self.key_pair("ssh", "pub", _make_ssh_key)

    def host(self, node: str) -> KeyPair:
        """Return a node's ed25519 host key, which it gets at its first boot."""
        return self.key_pair(f"host-{node}", "pub", _make_ssh_key)


def _make_ssh_key() -> tuple[bytes, bytes]:
    key = Ed25519PrivateKey.generate()
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n",
    )
