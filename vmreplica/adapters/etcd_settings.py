"""How to reach etcd, and the credentials for it. Secure unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from vmreplica.core.problems import Problem, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSettings:
    """Endpoints as ``host:port`` and the PEM files of mutual TLS.

    ``plaintext`` is for experiments on one machine: then no file may be named.
    ``call_timeout_ms`` is the deadline of a whole call with its tries, ``connect_timeout_ms`` how
    long one endpoint may take to accept a connection before the next one is asked.
    """

    endpoints: tuple[str, ...]
    ca_path: str = ""
    certificate_path: str = ""
    key_path: str = ""
    plaintext: bool = False
    call_timeout_ms: int = 3_000
    connect_timeout_ms: int = 1_000


@dataclass(frozen=True, slots=True)
class EtcdCredentials:
    """The bytes of the PEM files, as last read. Never logged."""

    ca: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "EtcdCredentials(…)"

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For grpc.aio.secure_channel."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


def read_credentials(settings: EtcdSettings) -> EtcdCredentials | None:
    """The PEM files, or None for plaintext.

    :raises Problem: BAD_CONFIG naming the field and the file.
    """
    if not settings.endpoints:
        raise Problem(
            Reason.BAD_CONFIG,
            "No etcd endpoint is configured.",
            field="etcd.endpoints",
            remedy="Name at least one member as host:port.",
        )
    if settings.plaintext:
        return None
    return EtcdCredentials(
        ca=_read("etcd.ca", settings.ca_path, b"CERTIFICATE"),
        certificate=_read("etcd.certificate", settings.certificate_path, b"CERTIFICATE"),
        key=_read("etcd.key", settings.key_path, b"PRIVATE KEY"),
    )


def _read(field: str, path: str, kind: bytes) -> bytes:
    remedy = "Name a readable PEM file; `vmrctl cert issue` makes them."
    if not path:
        raise Problem(
            Reason.BAD_CONFIG,
            f"{field} is not set, and etcd is reached through mutual TLS only.",
            field=field,
            remedy=remedy,
        )
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise Problem(
            Reason.BAD_CONFIG,
            f"{field}: {path}: {error.strerror}.",
            field=field,
            value=path,
            remedy=remedy,
        ) from error
    if b"-----BEGIN " not in content or kind + b"-----" not in content:
        raise Problem(
            Reason.BAD_CONFIG,
            f"{field}: {path} holds no {kind.decode().lower()} in PEM form.",
            field=field,
            value=path,
            remedy=remedy,
        )
    return content
