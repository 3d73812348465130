"""A small certificate authority in a directory: for labs, first steps, and clusters without a PKI.

``DIR/ca.pem`` and ``DIR/ca.key`` are the authority; ``issue`` writes NAME.pem and NAME.key. Keys
are EC P-256; a certificate serves as server and as client, and names hosts only in its subject
alternative names.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vmreplica.adapters import tls
from vmreplica.core.identity import Identity
from vmreplica.core.problems import Problem, Reason
from vmreplica.wire.role_uri import parse_role

CA_CERTIFICATE = "ca.pem"
CA_KEY = "ca.key"
CA_DAYS = 3650
DAYS = 365
_BACKDATED = timedelta(minutes=10)
"""Certificates begin a little early, so that hosts with slow clocks take them at once."""
_DNS_NAME = re.compile(
    r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
)


@dataclass(frozen=True, slots=True)
class Issued:
    """The files of one issued certificate."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Check:
    """One row of ``verify``."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def create_ca(directory: Path, name: str, now_ms: int, *, days: int = CA_DAYS) -> Path:
    """Make ``directory/ca.pem`` and ``ca.key``; an authority that exists is left as it is.

    :param name: common name, for people.
    :returns: path of the CA certificate.
    :raises Problem: BAD_FIELD where only one of the two files exists or nothing can be written.
    """
    certificate_path, key_path = directory / CA_CERTIFICATE, directory / CA_KEY
    if certificate_path.exists() and key_path.exists():
        return certificate_path
    if certificate_path.exists() or key_path.exists():
        raise Problem(
            Reason.BAD_FIELD,
            f"{directory} holds only one of {CA_CERTIFICATE} and {CA_KEY}.",
            field="DIR",
            value=str(directory),
            remedy="Choose an empty directory, or bring the missing file back.",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    builder = (
        _builder(subject, subject, key.public_key(), now_ms, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    _make_directory(directory, 0o700)
    _write(key_path, _key_pem(key), 0o600)
    _write(certificate_path, _pem(builder.sign(key, hashes.SHA256())), 0o644)
    return certificate_path


def issue(
    ca_directory: Path,
    out: Path,
    sans: Sequence[str],
    now_ms: int,
    *,
    days: int = DAYS,
    start_ms: int | None = None,
) -> Issued:
    """Issue ``OUT.pem`` and ``OUT.key`` (0600); files that exist are replaced.

    :param sans: DNS names, IP addresses and URIs (roles); at least one DNS name or role.
    :raises Problem: BAD_FIELD, CERTIFICATE_INVALID (the authority's own files).
    """
    ca_path = ca_directory / CA_CERTIFICATE
    ca = tls.parse_certificates(_read_ca(ca_path), ca_path)[0]
    ca_key = tls.parse_key(_read_ca(ca_directory / CA_KEY), ca_directory / CA_KEY)
    tls.check_times(ca, ca_path, now_ms)
    names = [_san(text) for text in sans]
    if not any(isinstance(n, x509.DNSName | x509.UniformResourceIdentifier) for n in names):
        raise _bad_san("", "Give at least one DNS name or role.")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, out.name[:64])])
    issuer_key = ca.public_key()
    builder = (
        _builder(subject, ca.subject, key.public_key(), start_ms or now_ms, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key),  # type: ignore[arg-type]
            critical=False,
        )
    )
    issued = Issued(out.with_name(out.name + ".pem"), out.with_name(out.name + ".key"))
    _make_directory(out.parent, 0o777)
    _write(issued.key, _key_pem(key), 0o600)
    _write(issued.certificate, _pem(builder.sign(ca_key, hashes.SHA256())), 0o644)
    return issued


def revoke(ca_directory: Path, crl: Path, serials: Sequence[int], now_ms: int) -> None:
    """Write a revocation list that names exactly ``serials``."""
    ca_path = ca_directory / CA_CERTIFICATE
    ca = tls.parse_certificates(_read_ca(ca_path), ca_path)[0]
    ca_key = tls.parse_key(_read_ca(ca_directory / CA_KEY), ca_directory / CA_KEY)
    now = tls.utc(now_ms)
    builder = x509.CertificateRevocationListBuilder(
        issuer_name=ca.subject, last_update=now - _BACKDATED, next_update=now + timedelta(days=30)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder(serial, now)
        builder = builder.add_revoked_certificate(entry.build())
    signed = builder.sign(ca_key, hashes.SHA256())
    _write(crl, signed.public_bytes(serialization.Encoding.PEM), 0o644)


def identity_in(path: Path) -> Identity:
    """Names and roles of a certificate file. :raises Problem: CERTIFICATE_INVALID"""
    return tls.identity_of(tls.parse_certificates(_read_ca(path), path)[0])


def verify(path: Path, ca: Path | None, now_ms: int, *, server_name: str = "") -> list[Check]:
    """What a peer would find out about a certificate, one row each; never stops at the first fault.

    :param ca: the authority the peer trusts; None = the chain is not looked at, which a row says.
    :param server_name: a DNS name that the certificate is to show ("" = any).
    :raises Problem: CERTIFICATE_INVALID where a file cannot be read at all.
    """
    certificate = tls.parse_certificates(_read_ca(path), path)[0]
    identity = tls.identity_of(certificate)
    rows = [_times_row(certificate, path, now_ms), _names_row(identity)]
    if server_name:
        shown = _matches(server_name.lower(), identity.dns_names)
        rows.append(
            Check(
                "server name",
                shown,
                f"{server_name} is {'among' if shown else 'not among'} the DNS names.",
                "" if shown else f"Issue it again with --san {server_name}.",
            )
        )
    rows.append(_usage_row(certificate))
    if ca is None:
        rows.append(
            Check("chain", ok=True, detail="Not looked at: no authority is known.", remedy=_NAME_CA)
        )
    else:
        authorities = tls.parse_certificates(_read_ca(ca), ca)
        signed = any(_issued_by(certificate, authority) for authority in authorities)
        rows.append(
            Check(
                "chain",
                signed,
                f"{'Signed' if signed else 'Not signed'} by a certificate in {ca}.",
                "" if signed else "Use a certificate and a CA file of the same authority.",
            )
        )
        rows += [_times_row(a, ca, now_ms, name="authority's validity") for a in authorities]
    return rows


def _times_row(
    certificate: x509.Certificate, path: Path, now_ms: int, name: str = "validity"
) -> Check:
    try:
        tls.check_times(certificate, path, now_ms)
    except Problem as problem:
        return Check(name, ok=False, detail=problem.message, remedy=problem.remedy)
    days = (tls.expires_ms(certificate) - now_ms) // 86_400_000
    return Check(name, ok=True, detail=f"Valid for {days} more days.")


def _names_row(identity: Identity) -> Check:
    if identity.dns_names or identity.roles:
        roles = [f"{r.kind.value} {r.name} of {r.cluster}" for r in identity.roles]
        return Check("names", ok=True, detail=", ".join([*identity.dns_names, *roles]))
    return Check(
        "names",
        ok=False,
        detail="The certificate shows no DNS name and no role.",
        remedy="Issue it again with --san NAME; the common name counts nothing.",
    )


def _usage_row(certificate: x509.Certificate) -> Check:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return Check("key usage", ok=True, detail="Not restricted.")
    wanted = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    if wanted <= set(usage):
        return Check("key usage", ok=True, detail="Server and client.")
    return Check(
        "key usage",
        ok=False,
        detail="The certificate must serve as server and as client.",
        remedy="Issue it with the extended key usages serverAuth and clientAuth.",
    )


def _matches(name: str, shown: Sequence[str]) -> bool:
    parent = name.partition(".")[2]
    return name in shown or (bool(parent) and f"*.{parent}" in shown)


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


_NAME_CA = "Name what peers trust: --ca FILE."
_ROLE_REMEDY = (
    "Write a role as CLUSTER/KIND/NAME; KIND is broker, node, administrator or viewer. "
    "For one group of VMs: CLUSTER/operator/GROUP/NAME."
)


def _san(text: str) -> x509.GeneralName:
    kind, _, rest = text.partition(":")
    if kind.upper() in ("DNS", "IP", "URI") and rest:
        text = rest
    if text.startswith("spiffe://") and parse_role(text) is None:
        raise _bad_san(text, _ROLE_REMEDY)
    if "://" in text:
        return x509.UniformResourceIdentifier(text)
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        if len(text) > 253 or not _DNS_NAME.fullmatch(text.lower()):
            raise _bad_san(text, "Give a DNS name, an IP address or a role URI.") from None
        return x509.DNSName(text.lower())


def _bad_san(value: str, remedy: str) -> Problem:
    message = f"{value!r} cannot stand in a certificate." if value else "The name is missing."
    return Problem(Reason.BAD_FIELD, message, field="--san", value=value, remedy=remedy)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: CertificatePublicKeyTypes,
    now_ms: int,
    days: int,
) -> x509.CertificateBuilder:
    now = tls.utc(now_ms).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _make_directory(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(
            Reason.BAD_FIELD,
            f"{path} cannot be made: {error.strerror}.",
            field=str(path),
            remedy="Choose a directory that this user may write to.",
        ) from error


def _write(path: Path, data: bytes, mode: int) -> None:
    # Written aside and renamed: a daemon that watches the file never sees half of it.
    aside = path.with_name(path.name + ".new")
    try:
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        aside.replace(path)
    except OSError as error:
        raise Problem(
            Reason.BAD_FIELD,
            f"{path} cannot be written: {error.strerror}.",
            field=str(path),
            remedy="Choose a directory that this user may write to.",
        ) from error


def _read_ca(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise tls.invalid(
            f"cannot be read: {error.strerror}.", path, "Check the path, or make it first."
        ) from error
