"""Sections that the daemons' configuration files have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vmreplica.adapters.config_file import AbsolutePath, HostPort, NotEmpty
from vmreplica.adapters.etcd_settings import EtcdSettings
from vmreplica.adapters.tls import TlsFiles
from vmreplica.core.keys import Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """PEM files. Reading them again needs no restart."""

    certificate: Annotated[Path, AbsolutePath(exists=True)]
    key: Annotated[Path, AbsolutePath(exists=True)]
    ca: Annotated[Path, AbsolutePath(exists=True)]
    crl: Annotated[Path, AbsolutePath()] | None = None

    def files(self) -> TlsFiles:
        """For the adapters."""
        return TlsFiles(self.certificate, self.key, self.ca, self.crl)


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """The cluster store, through mutual TLS."""

    endpoints: Annotated[tuple[Annotated[str, HostPort(port_zero=False)], ...], NotEmpty()]
    certificate: Annotated[Path, AbsolutePath(exists=True)]
    key: Annotated[Path, AbsolutePath(exists=True)]
    ca: Annotated[Path, AbsolutePath(exists=True)]
    prefix: str = ""

    def settings(self) -> EtcdSettings:
        """For the adapter."""
        return EtcdSettings(
            endpoints=self.endpoints,
            ca_path=str(self.ca),
            certificate_path=str(self.certificate),
            key_path=str(self.key),
        )

    def is_of(self, cluster: str) -> bool:
        """Whether the prefix, where one is given, is the cluster's own."""
        return self.prefix.rstrip("/") in ("", Keys(cluster).root.rstrip("/"))
