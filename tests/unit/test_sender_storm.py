"""Random faults at a primary from a seed: every acknowledged cycle is exact, and all heals."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.support.primary_world import PrimaryWorld, in_world
from vmreplica.core.cycle import CycleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.replication_state import ReplicationState

SEEDS = range(12)
MINUTES = 4
NODES = ("r1", "r2", "r3")
FAULTS = (
    "cut", "lost_ack", "lost_close", "relocate", "dead_owner", "silent", "unreachable", "stale",
    "cap_down", "job_dies", "begin_fails", "foreign", "restart", "busy", "store_down", "tracking",
)  # fmt: skip
fired: Counter[str] = Counter()


async def strike(world: PrimaryWorld, rng: random.Random, fault: str) -> None:
    """One fault, healed after a while where it would last."""
    fired[fault] += 1
    if not at_once(world, rng, fault):
        await lasting(world, rng, fault, rng.choice((300, 2_000, 9_000)))


def at_once(world: PrimaryWorld, rng: random.Random, fault: str) -> bool:
    faults, replica = world.link.faults, world.replica
    match fault:
        case "cut":
            faults.cut_after_frames.append(rng.randrange(6))
        case "lost_ack":
            faults.lost_acks += 1
        case "lost_close":
            faults.lost_closes += 1
        case "relocate":
            world.link.relocate(replica.replica_id, rng.choice(NODES))
        case "stale":
            world.link.relocate(replica.replica_id, rng.choice(NODES))
            faults.stale_locations = rng.randrange(1, 5)
        case "job_dies":
            world.vm.end_job()
        case "begin_fails":
            world.vm.fail_next_begin = True
        case "busy":
            faults.refuse_open.append(Problem(Reason.BUSY, "another stream is still open"))
        case "tracking":
            world.vm.lose_tracking()
        case _:
            return False
    return True


async def lasting(world: PrimaryWorld, rng: random.Random, fault: str, lasting_ms: int) -> None:
    faults, replica = world.link.faults, world.replica
    match fault:
        case "restart":
            await world.restart()
        case "dead_owner":
            dead = replica.node
            faults.dead_nodes.add(dead)
            await world.clock.sleep(lasting_ms)
            world.link.relocate(replica.replica_id, "r2" if dead != "r2" else "r3")
            await world.clock.sleep(lasting_ms)
            faults.dead_nodes.discard(dead)
        case "silent":
            faults.silent = True
            await world.clock.sleep(lasting_ms)
            faults.silent = False
            world.link.relocate(replica.replica_id, rng.choice(NODES))
        case "unreachable":
            faults.unreachable_nodes.update(NODES)
            await world.clock.sleep(lasting_ms)
            faults.unreachable_nodes.clear()
        case "cap_down":
            faults.cap_down = True
            await world.clock.sleep(lasting_ms)
            faults.cap_down = False
        case "foreign":
            world.vm.foreign_job = True
            await world.clock.sleep(lasting_ms)
            world.vm.foreign_job = False
        case "store_down":
            world.store.faults.refuse = 1.0
            await world.clock.sleep(lasting_ms)
            world.store.faults.heal()
        case _:
            raise AssertionError(fault)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_acknowledged_cycles_are_exact(seed: int) -> None:
    async def story(world: PrimaryWorld) -> None:
        rng = random.Random(seed)
        world.link.frame_ms = rng.choice((1, 20, 150))
        replica = await world.protect()
        checked, lost = 0, 0
        end_ms = world.clock.boottime_ms() + MINUTES * 60_000
        while world.clock.boottime_ms() < end_ms:
            for _ in range(rng.randrange(60)):
                world.vm.write(rng.choice(("vda", "vdb")), rng.randrange(128), rng.randrange(5))
            if rng.random() < 0.3:
                for cluster in range(rng.randrange(900)):
                    world.vm.write("vda", cluster, rng.getrandbits(40))
            if rng.random() < 0.5:
                fault = rng.choice(FAULTS)
                lost += fault == "tracking"
                await strike(world, rng, fault)
            await world.clock.sleep(rng.randrange(3_000))
            if replica.seq > checked:
                checked = replica.seq
                world.check()
        world.link.faults = type(world.link.faults)()
        await world.acknowledged(2, limit_ms=30_000)
        world.check()
        view = await world.role.show("guest1")
        assert view.state is ReplicationState.REPLICATING
        assert checked > 10
        assert len(world.vm.trackers) <= 2
        # A full copy is never needed where a bitmap survives.
        fulls = replica.kinds.count(CycleKind.FULL)
        assert fulls <= 1 + lost, f"{fulls} full cycles after {lost} lost trackers (seed {seed})"

    in_world(story, seed=seed)


def test_every_fault_was_tried() -> None:
    if fired.total() < len(SEEDS):
        pytest.skip("runs behind the storm in the same process")
    assert set(fired) == set(FAULTS), fired
