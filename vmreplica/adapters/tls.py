"""Key, certificate and CA files of a process, and who the peers' certificates say they are.

All that can be wrong with the files is found when they are loaded, with the file's name and the
remedy, instead of as a failed handshake later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

from vmreplica.core.identity import Identity
from vmreplica.core.problems import Problem, Reason
from vmreplica.wire.role_uri import parse_role


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files are. ``crl`` is optional: serials it names are refused call by call."""

    certificate: Path
    key: Path
    ca: Path
    crl: Path | None = None

    def signature(self) -> tuple[tuple[int, int, int], ...]:
        """Changes whenever one of the files does; a missing file counts as zeros."""
        return tuple(_stat(path) for path in self.paths())

    def paths(self) -> tuple[Path, ...]:
        """All files named."""
        named = (self.certificate, self.key, self.ca)
        return named if self.crl is None else (*named, self.crl)


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """Checked content of the files. ``signature`` is that of the files it was read from."""

    certificate_pem: bytes
    key_pem: bytes
    ca_pem: bytes
    certificate: x509.Certificate
    private_key: CertificateIssuerPrivateKeyTypes
    identity: Identity
    expires_ms: int
    revoked_serials: frozenset[int] = frozenset()
    signature: tuple[tuple[int, int, int], ...] = field(default=(), compare=False)


def invalid(message: str, path: Path | str, remedy: str) -> Problem:
    """A CERTIFICATE_INVALID that names the file."""
    return Problem(
        Reason.CERTIFICATE_INVALID,
        f"{path}: {message}",
        field=str(path),
        remedy=remedy,
    )


def load(files: TlsFiles, now_ms: int) -> TlsMaterial:
    """Read and check all files.

    :raises Problem: CERTIFICATE_INVALID, naming file and remedy.
    """
    signature = files.signature()
    certificate_pem = _read(files.certificate)
    key_pem = _read(files.key)
    ca_pem = _read(files.ca)
    certificate = parse_certificates(certificate_pem, files.certificate)[0]
    parse_certificates(ca_pem, files.ca)
    key = parse_key(key_pem, files.key)
    if _public_bytes(key.public_key()) != _public_bytes(certificate.public_key()):
        raise invalid(
            f"the key does not belong to the certificate {files.certificate}.",
            files.key,
            "Point tls.key to the key that was made together with the certificate.",
        )
    check_times(certificate, files.certificate, now_ms)
    identity = identity_of(certificate)
    if not identity.dns_names and not identity.roles:
        raise invalid(
            "the certificate shows no DNS name and no role (subject alternative names).",
            files.certificate,
            "Issue it again with 'vmrctl cert issue --san NAME'; the common name counts nothing.",
        )
    return TlsMaterial(
        certificate_pem=certificate_pem,
        key_pem=key_pem,
        ca_pem=ca_pem,
        certificate=certificate,
        private_key=key,
        identity=identity,
        expires_ms=expires_ms(certificate),
        revoked_serials=_revoked(files.crl, ca_pem, files.ca) if files.crl else frozenset(),
        signature=signature,
    )


def parse_certificates(pem: bytes, path: Path | str) -> list[x509.Certificate]:
    """All certificates of a PEM file, at least one. :raises Problem: CERTIFICATE_INVALID"""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise invalid(
            "this is not a PEM certificate.",
            path,
            "The file must begin with -----BEGIN CERTIFICATE-----.",
        ) from error


def parse_key(pem: bytes, path: Path | str) -> CertificateIssuerPrivateKeyTypes:
    """The private key of a PEM file. :raises Problem: CERTIFICATE_INVALID"""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise invalid(
            "this is not an unencrypted PEM private key.",
            path,
            "The file must begin with -----BEGIN PRIVATE KEY----- and have no passphrase.",
        ) from error
    return key  # type: ignore[return-value]


def check_times(certificate: x509.Certificate, path: Path | str, now_ms: int) -> None:
    """:raises Problem: CERTIFICATE_INVALID outside the certificate's time of validity."""
    begins, ends = starts_ms(certificate), expires_ms(certificate)
    if now_ms >= ends:
        raise invalid(
            f"the certificate expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC.",
            path,
            "Issue a new one with 'vmrctl cert issue'; running daemons take it by themselves.",
        )
    if now_ms < begins:
        raise invalid(
            f"the certificate begins at {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC.",
            path,
            "Check this host's clock.",
        )


def starts_ms(certificate: x509.Certificate) -> int:
    """Begin of validity."""
    return int(certificate.not_valid_before_utc.timestamp()) * 1000


def expires_ms(certificate: x509.Certificate) -> int:
    """End of validity."""
    return int(certificate.not_valid_after_utc.timestamp()) * 1000


def identity_of(certificate: x509.Certificate) -> Identity:
    """DNS names and roles of the subject alternative names; the common name is never looked at."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Identity(fingerprint=fingerprint(certificate))
    dns = tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))
    uris: Iterable[str] = names.get_values_for_type(x509.UniformResourceIdentifier)
    roles = tuple(role for role in map(parse_role, uris) if role is not None)
    return Identity(dns_names=dns, roles=roles, fingerprint=fingerprint(certificate))


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER form, hex."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def utc(time_ms: int) -> datetime:
    """Milliseconds since 1970 as a UTC moment."""
    return datetime.fromtimestamp(time_ms / 1000, tz=UTC)


def _revoked(crl: Path, ca_pem: bytes, ca: Path) -> frozenset[int]:
    try:
        revocations = x509.load_pem_x509_crl(_read(crl))
    except ValueError as error:
        raise invalid(
            "this is not a PEM certificate revocation list.",
            crl,
            "The file must begin with -----BEGIN X509 CRL-----.",
        ) from error
    if not any(_signed_by(revocations, issuer) for issuer in parse_certificates(ca_pem, ca)):
        raise invalid(
            f"no certificate in {ca} signed this revocation list.",
            crl,
            "Take the list from the same certificate authority.",
        )
    return frozenset(entry.serial_number for entry in revocations)


def _signed_by(revocations: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return revocations.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (InvalidSignature, TypeError):
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise invalid(
            f"cannot be read: {error.strerror}.",
            path,
            "Check the path and that this user may read it.",
        ) from error


def _public_bytes(key: object) -> bytes:
    raw: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return raw


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
