"""vmreplica-node: the node agent of one host."""

from __future__ import annotations

import sys
from pathlib import Path

from node.config import NodeConfig
from node.daemon import run_node
from vmreplica.adapters import tls
from vmreplica.adapters.allocator import keep_freed_memory
from vmreplica.adapters.daemon import run_daemon
from vmreplica.adapters.distribution import version
from vmreplica.adapters.etcd_settings import read_credentials
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.core.identity import RoleKind
from vmreplica.core.problems import Problem, Reason

DEFAULT_CONFIG = Path("/etc/vmreplica/node.yaml")


def check(config: NodeConfig) -> None:
    """What --check and each start look at beyond the file itself. :raises Problem:"""
    material = tls.load(config.tls.files(), SystemClock().wall_ms())
    if config.etcd is not None:
        read_credentials(config.etcd.settings())
    if not material.identity.has_role(config.cluster, RoleKind.NODE):
        raise Problem(
            Reason.BAD_CONFIG,
            f"tls.certificate: {config.tls.certificate} bears no role node of {config.cluster}.",
            field="tls.certificate",
            remedy=f"vmrctl cert issue --role {config.cluster}/node/{config.name} …",
        )
    for location in config.storage_locations:
        if not location.path.is_dir():
            raise Problem(
                Reason.BAD_CONFIG,
                f"storage_locations: {location.path} is no directory.",
                field="storage_locations",
                value=str(location.path),
                remedy="Create it, or mount the shared file system there first.",
            )


def main() -> int:
    """The command's entry point."""
    keep_freed_memory()
    return run_daemon(
        "vmreplica-node", DEFAULT_CONFIG, NodeConfig, run_node, check=check, version=version()
    )


if __name__ == "__main__":
    sys.exit(main())
