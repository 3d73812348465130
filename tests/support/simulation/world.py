"""One seed, one world: faults for its virtual minutes, then healing, then the verdict."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from dataclasses import dataclass

from node.disk.replica_store import DiskReplicaStore
from simulation.checks import History
from simulation.cluster import Cluster
from simulation.faults import Faults
from simulation.hosts import LOCATION
from simulation.intruder import Intruder
from simulation.options import Options, draw
from simulation.readback import difference, newest_on_disk
from vmreplica.testing.memory_files import MemoryFiles
from vmreplica.testing.seeded_randomness import SeededRandomness
from vmreplica.testing.sim_loop import SimLoop, run

SETTLE_S = 20.0
CONVERGE_S = 150.0
_LEAST_CONVERGE_S = 30.0
_LOOK_EVERY_S = 0.5
_LOOKS_PER_READ = 60


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a world has to say for itself. ``fingerprint``: of its whole history."""

    seed: int
    options: Options
    fired: Counter[str]
    marks: frozenset[str]
    acks: int
    steps: int
    fulls: int
    refused: int
    fingerprint: str


def simulate(seed: int, minutes: float = 10.0) -> Verdict:
    """Run one world. :raises Violation: a promise was broken (the first one, at once)."""

    async def main(loop: SimLoop) -> Verdict:
        cluster = Cluster(loop, seed, draw(seed, minutes))
        life = asyncio.ensure_future(_live(cluster, seed, minutes))
        await asyncio.wait({life, cluster.violated}, return_when=asyncio.FIRST_COMPLETED)
        if cluster.violated.done():
            cluster.violated.result()
        return life.result()

    return run(main, seed)


async def _live(cluster: Cluster, seed: int, minutes: float) -> Verdict:
    await cluster.start()
    faults, intruder = Faults(cluster, seed), Intruder(cluster)
    cluster.spawn(intruder.run())
    cluster.spawn(_watch(cluster))
    await asyncio.sleep(SETTLE_S)
    await faults.run(minutes * 60 - CONVERGE_S)
    faults.heal()
    await _converge(cluster)
    for history in cluster.checks.histories.values():
        _compare(cluster, history)
    return Verdict(
        seed=seed,
        options=cluster.options,
        fired=cluster.fired + cluster.server.fired,
        marks=frozenset(cluster.checks.marks),
        acks=cluster.checks.acks,
        steps=cluster.loop.steps,
        fulls=cluster.checks.fulls,
        refused=intruder.tries,
        fingerprint=_fingerprint(cluster),
    )


async def _converge(cluster: Cluster) -> None:
    """Liveness: without a person every VM is acknowledged again, twice."""
    goals = {vm.uuid: _acked(cluster, vm.uuid) + 2 for vm in cluster.hypervisor.vms}
    healed_s = cluster.loop.time()
    while _late(cluster, goals) or cluster.loop.time() < healed_s + _LEAST_CONVERGE_S:
        if cluster.loop.time() > healed_s + CONVERGE_S:
            late = _late(cluster, goals)
            cluster.checks.fail(f"not replicating {CONVERGE_S:.0f} s after the faults: {late}")
        await asyncio.sleep(1)


def _late(cluster: Cluster, goals: dict[str, int]) -> dict[str, tuple[int, int]]:
    acked = {uuid: _acked(cluster, uuid) for uuid in goals}
    return {uuid: (acked[uuid], goal) for uuid, goal in goals.items() if acked[uuid] < goal}


def _acked(cluster: Cluster, uuid: str) -> int:
    seqs = [
        max(history.acked)
        for history in cluster.checks.histories.values()
        if history.acked and history.newest.vm_uuid == uuid
    ]
    return max(seqs, default=0)


async def _watch(cluster: Cluster) -> None:
    """Whoever thinks that it may act may; now and then one replica is read, bit by bit."""
    looks = 0
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        cluster.look_at_standings()
        looks += 1
        if looks % _LOOKS_PER_READ:
            continue
        histories = [h for h in cluster.checks.histories.values() if h.manifests]
        if histories:
            _compare(cluster, cluster.random.choice(histories))


def _compare(cluster: Cluster, history: History) -> None:
    """The head against what the guest's disks held at that moment."""
    files = MemoryFiles(cluster.disk, "reader")
    store = DiskReplicaStore(files, (LOCATION,), SeededRandomness(0))
    manifest = history.newest
    found = newest_on_disk(store, history.folder) if not cluster.disk.listing_lag_ms else manifest
    if found != manifest:
        cluster.checks.fail(f"{history.folder}: the newest manifest on disk is another")
    if not manifest.head.seq:
        return
    content = cluster.hypervisor.source.points[manifest.head.cycle_id]
    wrong = difference(store, history.folder, manifest, content)
    if wrong:
        cluster.checks.fail(wrong)


def _fingerprint(cluster: Cluster) -> str:
    told = hashlib.sha256()
    for replica_id, history in sorted(cluster.checks.histories.items()):
        told.update(f"{replica_id} {history.newest_digest.hex()} {sorted(history.acked)}".encode())
    told.update(f"{cluster.loop.steps} {cluster.loop.time()}".encode())
    told.update(repr(sorted(cluster.events.items())).encode())
    return told.hexdigest()[:16]
