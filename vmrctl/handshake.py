"""One TLS handshake with a server, to see whether both sides take each other's certificate."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from vmreplica.adapters.certificates import Check

TIMEOUT_S = 5.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""HTTP/2's first words with empty settings: a server that takes us answers with its own."""


def try_server(address: str, certificate: Path, ca: Path | None) -> list[Check]:
    """One row a step, up to the first that fails.

    :param certificate: PEM file; its key is expected beside it with the suffix ``.key``.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if ca is None:
        return [
            Check(
                "server's certificate",
                ok=False,
                detail="No authority is known to judge the server by.",
                remedy="Name one with --ca FILE.",
            )
        ]
    try:
        context = _context(certificate, ca)
    except (OSError, ssl.SSLError) as error:
        return [_key_fault(certificate, error)]
    try:
        plain = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
    except OSError as error:
        return [
            Check(
                "tcp",
                ok=False,
                detail=f"{address} cannot be reached: {error}.",
                remedy="Check name, port and firewall.",
            )
        ]
    rows = [Check("tcp", ok=True, detail=f"Connected to {plain.getpeername()[0]}.")]
    with plain:
        return rows + _handshake(context, plain, host)


def _context(certificate: Path, ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(str(certificate), str(certificate.with_suffix(".key")))
    return context


def _handshake(context: ssl.SSLContext, plain: socket.socket, host: str) -> list[Check]:
    rows: list[Check] = []
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            shown: Any = (secure.getpeercert() or {}).get("subjectAltName", ())
            detail = f"{secure.version()}; it shows {', '.join(str(name[1]) for name in shown)}."
            rows.append(Check("server's certificate", ok=True, detail=detail))
            secure.sendall(_PREFACE)
            answered = bool(secure.recv(9))
    except ssl.SSLCertVerificationError as error:
        remedy = "The server needs a certificate of an authority in --ca that shows this name."
        detail = f"Refused by us: {error.verify_message}."
        return [Check("server's certificate", ok=False, detail=detail, remedy=remedy)]
    except OSError as error:
        answered, reason = False, getattr(error, "reason", None) or str(error)
    else:
        reason = "it closed the connection"
    if answered:
        return [*rows, Check("our certificate", ok=True, detail="Taken by the server.")]
    name = "our certificate" if rows else "tls"
    remedy = "The server must trust the authority that signed this certificate."
    return [*rows, Check(name, ok=False, detail=f"Refused by the server: {reason}.", remedy=remedy)]


def _key_fault(certificate: Path, error: Exception) -> Check:
    key = certificate.with_suffix(".key")
    detail = f"{certificate} and {key} cannot be used together: {error}."
    return Check("key", ok=False, detail=detail, remedy="Put the right key beside it.")
