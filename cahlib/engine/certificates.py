"""The TLS certificates of one cluster, for connections between its Dask processes.

They are stored in one folder that only its owner can read, so that a restarted command reaches the
same cluster. Anyone with a TLS key of a cluster can run code on it: its authority is created for
one swarm, is valid for a month, and is renewed if a later swarm of the same folder would outlive
it. It does not know any server.
"""

from __future__ import annotations

import datetime
import ipaddress
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cahlib.core.atomic import write_file
from cahlib.engine.wire import DRIVER_NAMES, SCHEDULER_NAME

_LIFETIME = datetime.timedelta(days=30)

#: The least remaining validity when servers are created.
_MIN_REMAINING = _LIFETIME / 2

_LOCK = threading.Lock()

#: Clocks of laptops and new servers are sometimes off by hours.
_CLOCK_SKEW = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """The files of a private key and its public half."""

    private: Path
    public: Path  #: an SSH public key, or a certificate


@dataclass(frozen=True, slots=True)
class Certificates:
    """The certificates stored in ``folder``; each is created when first requested."""

    folder: Path

    def authority(self) -> KeyPair:
        """Return the authority that signs the other certificates."""
        return self.key_pair("authority", "crt", lambda: _make_certificate("cahlib swarm", None))

    def driver(self) -> KeyPair:
        """Return key and certificate of the driver."""
        authority = self.authority()
        return self.key_pair("driver", "crt", lambda: _make_certificate(DRIVER_NAMES[0], authority))

    def node(self, name: str, *addresses: str) -> KeyPair:
        """Return key and certificate of a node, valid for its addresses only."""
        assert name not in (*DRIVER_NAMES, SCHEDULER_NAME)
        return self._server_pair(f"node-{name}", name, addresses)

    def scheduler(self, *addresses: str) -> KeyPair:
        """Return key and certificate of the scheduler at these addresses; its node has others."""
        return self._server_pair(SCHEDULER_NAME, SCHEDULER_NAME, addresses)

    def renew(self, *, now: datetime.datetime | None = None) -> None:
        """Delete the certificates if they expire soon; nodes with them are then set up again."""
        authority = self.folder / "authority.crt"
        if not authority.exists():
            return
        ends = x509.load_pem_x509_certificate(authority.read_bytes()).not_valid_after_utc
        if ends < (now or datetime.datetime.now(datetime.timezone.utc)) + _MIN_REMAINING:
            signed = [path for path in self.folder.glob("*.crt") if path != authority]
            for path in (*signed, authority):  # last, so that no certificate is left without it
                path.unlink()

    def guest(self, hours: float) -> tuple[bytes, bytes]:
        """Return key and certificate of a remote driver for so many hours; they are not stored."""
        return _make_certificate(DRIVER_NAMES[1], self.authority(), datetime.timedelta(hours=hours))

    def _server_pair(self, file: str, name: str, addresses: Sequence[str]) -> KeyPair:
        authority = self.authority()
        # a server that gets another address gets another certificate
        file = "-".join([file, *(each.replace(":", ".") for each in addresses)])
        return self.key_pair(
            file, "crt", lambda: _make_certificate(name, authority, addresses=addresses)
        )

    def key_pair(self, name: str, kind: str, make: Callable[[], tuple[bytes, bytes]]) -> KeyPair:
        """Return the pair of a name, created if missing; its public half is written last."""
        pair = KeyPair(private=self.folder / f"{name}.key", public=self.folder / f"{name}.{kind}")
        with _LOCK:  # many nodes are set up at once, and request the same
            if not pair.public.exists():
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                for path, data in zip((pair.private, pair.public), make(), strict=True):
                    write_file(path, data, mode=0o600)
        return pair


def _make_certificate(
    name: str,
    authority: KeyPair | None,
    lifetime: datetime.timedelta = _LIFETIME,
    *,
    addresses: Sequence[str] = (),
) -> tuple[bytes, bytes]:
    """Return a key and its certificate, signed by the authority; without one, an authority.

    A certificate without addresses is for clients only.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = subject, key
    if authority:
        issuer = x509.load_pem_x509_certificate(authority.public.read_bytes()).subject
        loaded = load_pem_private_key(authority.private.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer = loaded
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=not authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(_key_usage(sign=not authority), critical=True)
    )
    if authority:
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if addresses:
            names = [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate.public_bytes(Encoding.PEM),
    )


def _key_usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
