"""Reads replicas back from the modelled disk, bit by bit, against what the guests' disks held."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from node.disk.replica_folder import DiskReplicaFolder
from node.disk.replica_store import DiskReplicaStore
from vmreplica.core.cycle import ZERO_CLUSTER_DIGEST, digest
from vmreplica.core.manifest import Manifest
from vmreplica.ports.replica_store import StorageFailed
from vmreplica.testing.fake_change_source import Content, cluster_of

T = TypeVar("T")
_NOTHING = frozenset({ZERO_CLUSTER_DIGEST, bytes(16)})


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never has to wait: nothing else happens meanwhile."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    work.close()
    raise RuntimeError("the reading had to wait")


def newest_on_disk(store: DiskReplicaStore, path: str) -> Manifest | None:
    """The manifest that a node would find."""
    return at_once(at_once(store.open_folder(path, create=False)).read_highest())


def difference(store: DiskReplicaStore, path: str, manifest: Manifest, content: Content) -> str:
    """How the head of ``manifest`` differs from ``content``; "" = not at all."""
    folder = at_once(store.open_folder(path, create=False))
    for disk in manifest.disks:
        wrong = _wrong(folder, disk.target, manifest, content.get(disk.target, {}))
        if wrong:
            return f"{disk.target} of {manifest.vm_name} at {manifest.head.seq}: {wrong}"
    return ""


def _wrong(
    folder: DiskReplicaFolder, target: str, manifest: Manifest, content: dict[int, int]
) -> str:
    try:
        stored = at_once(folder.plain_digests(target, manifest, manifest.head.seq))
    except (StorageFailed, FileNotFoundError) as failed:
        return f"does not read back: {failed}"
    found = {i: d for i, d in stored.items() if d not in _NOTHING}
    wanted = {i: digest(cluster_of(value)) for i, value in content.items()}
    if found == wanted:
        return ""
    clusters = sorted({i for i, _ in set(found.items()) ^ set(wanted.items())})
    return f"clusters {clusters[:8]} differ from the source"
