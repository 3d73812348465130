"""One seed, one world: faults for its virtual minutes, then healing, then the verdict."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from node.disk.replica_store import DiskReplicaStore
from simulation.checks import Violation
from simulation.cluster import Cluster
from simulation.faults import Faults
from simulation.hosts import LOCATION
from simulation.options import Options, draw
from vmreplica.core.cycle import ZERO_CLUSTER_DIGEST, digest
from vmreplica.core.records import ReplicaRecord, parse
from vmreplica.testing.fake_change_source import cluster_of
from vmreplica.testing.seeded_randomness import SeededRandomness
from vmreplica.testing.sim_loop import SimLoop, run

CONVERGE_S = 150.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a world has to say for itself."""

    seed: int
    options: Options
    fired: Counter[str]
    marks: frozenset[str]
    acks: int
    steps: int
    fulls: int


def simulate(seed: int, minutes: float = 10.0) -> Verdict:
    """Run one world. :raises Violation: a promise was broken."""

    async def main(loop: SimLoop) -> Verdict:
        options = draw(seed, minutes)
        cluster = Cluster(loop, seed, options)
        await cluster.start()
        faults = Faults(cluster, seed)
        await asyncio.sleep(20)
        await faults.run(minutes * 60 - CONVERGE_S)
        faults.heal()
        await _converge(cluster)
        await _compare(cluster)
        if cluster.failures:
            raise Violation(f"a daemon ended by itself: {cluster.failures[0]!r}")
        return Verdict(
            seed=seed,
            options=options,
            fired=cluster.fired + cluster.server.fired,
            marks=frozenset(cluster.checks.marks),
            acks=cluster.checks.acks,
            steps=loop.steps,
            fulls=cluster.checks.fulls,
        )

    return run(main, seed)


async def _converge(cluster: Cluster) -> None:
    """Liveness: without a person every VM is acknowledged again, twice."""
    goals = {vm.uuid: _acked(cluster, vm.uuid) + 2 for vm in cluster.hypervisor.vms}
    until = cluster.loop.time() + CONVERGE_S
    while cluster.loop.time() < until or _late(cluster, goals):
        if not _late(cluster, goals) and cluster.loop.time() >= until - CONVERGE_S + 30:
            return
        if cluster.loop.time() > until:
            late = _late(cluster, goals)
            raise Violation(f"not replicating {CONVERGE_S:.0f} s after the faults: {late}")
        await asyncio.sleep(1)


def _late(cluster: Cluster, goals: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {
        uuid: (_acked(cluster, uuid), goal)
        for uuid, goal in goals.items()
        if _acked(cluster, uuid) < goal
    }


def _acked(cluster: Cluster, uuid: str) -> int:
    seqs = [
        max(history.acked)
        for history in cluster.checks.histories.values()
        if history.acked and history.newest.vm_uuid == uuid
    ]
    return max(seqs, default=0)


async def _compare(cluster: Cluster) -> None:
    """Every head, bit by bit, against what the guest's disks held at that moment."""
    store = DiskReplicaStore(cluster.view("admin"), (LOCATION,), SeededRandomness(0))
    truth = cluster.hypervisor.source.points
    for kv in list(cluster.server.state.live.values()):
        if not kv.key.startswith(cluster.keys.replicas):
            continue
        record = parse(ReplicaRecord, kv.value)
        folder = await store.open_folder(record.folder_path, create=False)
        manifest = await folder.read_highest()
        if manifest is None or not manifest.head.seq:
            continue
        content = truth[manifest.head.cycle_id]
        for disk in manifest.disks:
            stored = await folder.plain_digests(disk.target, manifest, manifest.head.seq)
            found = {i: d for i, d in stored.items() if d not in (ZERO_CLUSTER_DIGEST, bytes(16))}
            wanted = {
                i: digest(cluster_of(value)) for i, value in content.get(disk.target, {}).items()
            }
            if found != wanted:
                wrong = sorted(set(found.items()) ^ set(wanted.items()))[:4]
                raise Violation(f"{record.vm_name} {disk.target} differs from its source: {wrong}")
