"""GuardedWriter: what it reports is what happened, also when answers are lost or come too late."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from vmreplica.coordination.guarded import GuardedWriter
from vmreplica.core.keys import Keys
from vmreplica.ports.cluster_store import (
    Get,
    OutcomeUnknown,
    Put,
    StoreRefused,
    StoreUnavailable,
    absent,
    unchanged,
)
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.seeded_randomness import SeededRandomness
from vmreplica.testing.sim_loop import SimLoop, run

KEYS = Keys("c")


class World:
    def __init__(self, seed: int = 1) -> None:
        self.server = FakeStoreServer(seed)
        self.faults = self.server.faults("h")
        self.store = FakeClusterStore(self.server, "h")
        self.clock = FakeClock()
        self.randomness = SeededRandomness(seed)
        self.writer = GuardedWriter(self.store, self.clock, self.randomness, KEYS)

    def value(self, key: str) -> str | None:
        kv = self.server.state.live.get(key)
        return None if kv is None else kv.value


def simulated(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    def wrapped() -> None:
        async def main(_: SimLoop) -> None:
            await test(World())

        run(main, 1)

    wrapped.__name__ = test.__name__
    return wrapped


@simulated
async def test_a_write_leaves_its_op_key_for_an_hour(world: World) -> None:
    result = await world.writer.write([absent("/a")], [Put("/a", "1"), Get("/a")], op_id="op1")
    assert result.succeeded
    assert result.reads[0] is not None
    op = world.server.state.live[KEYS.op("op1")]
    assert op.mod_revision == result.revision == world.server.state.live["/a"].mod_revision
    await world.clock.sleep(3_600_000)
    assert world.value(KEYS.op("op1")) is not None
    await world.clock.sleep(700_000)
    assert world.value(KEYS.op("op1")) is None
    assert world.value("/a") == "1"


@simulated
async def test_a_guard_that_fails_writes_nothing(world: World) -> None:
    await world.writer.write([], [Put("/a", "1")])
    result = await world.writer.write([absent("/a")], [Put("/a", "2")], op_id="op2")
    assert not result.succeeded
    assert world.value("/a") == "1"
    assert world.value(KEYS.op("op2")) is None


@simulated
async def test_a_lost_reply_is_found_to_be_done(world: World) -> None:
    world.faults.next_write("lost_reply")
    result = await world.writer.write([absent("/a")], [Put("/a", "1")])
    assert result.succeeded
    assert result.revision == world.server.state.live["/a"].mod_revision


@simulated
async def test_a_lost_request_is_found_to_be_not_done(world: World) -> None:
    world.faults.next_write("lost_request")
    with pytest.raises(StoreUnavailable, match="not applied"):
        await world.writer.write([absent("/a")], [Put("/a", "1")], op_id="op")
    assert world.value("/a") is None
    assert (await world.writer.write([absent("/a")], [Put("/a", "1")], op_id="op")).succeeded


@simulated
async def test_a_request_that_arrives_late_is_fenced_off(world: World) -> None:
    world.faults.next_write("late_apply")
    with pytest.raises(StoreUnavailable, match="not applied"):
        await world.writer.write([], [Put("/a", "1")])
    await world.clock.sleep(10_000)
    assert world.server.fired["late_apply"] + world.server.fired["outcome_unknown"] >= 1
    assert world.value("/a") is None, "it was reported as not applied, and then applied"


@simulated
async def test_resolving_survives_trouble_of_its_own(world: World) -> None:
    world.faults.next_write("lost_reply", "lost_reply", "refused", "lost_request")
    assert (await world.writer.write([], [Put("/a", "1")])).succeeded
    world.faults.next_write("lost_request", "lost_reply", "refused", "lost_request")
    with pytest.raises(StoreUnavailable, match="not applied"):
        await world.writer.write([], [Put("/b", "1")])
    assert world.value("/b") is None


@simulated
async def test_what_cannot_be_resolved_stays_unknown(world: World) -> None:
    await world.writer.write([], [Put("/warm", "")])
    world.faults.next_write("lost_reply")
    writing = asyncio.create_task(world.writer.write([], [Put("/a", "1")]))
    await world.clock.sleep(1_000)
    world.faults.cut = True
    with pytest.raises(OutcomeUnknown):
        await writing
    assert world.value("/a") == "1"


@simulated
async def test_a_store_that_refuses_connections_is_certain(world: World) -> None:
    world.faults.refuse = True
    with pytest.raises(StoreUnavailable):
        await world.writer.write([], [Put("/a", "1")])
    assert world.value("/a") is None


@simulated
async def test_an_op_id_is_applied_once(world: World) -> None:
    first = await world.writer.write([], [Put("/a", "1")], op_id="op")
    await world.writer.write([], [Put("/a", "2")])
    again = await world.writer.write([], [Put("/a", "1")], op_id="op")
    assert (again.succeeded, again.revision) == (True, first.revision)
    assert world.value("/a") == "2"


@simulated
async def test_the_lease_of_the_op_keys_is_renewed_when_it_was_lost(world: World) -> None:
    await world.writer.write([], [Put("/a", "1")])
    for lease_id in list(world.server.state.leases):
        world.server.expire(lease_id)
    assert (await world.writer.write([], [Put("/a", "2")])).succeeded
    assert world.value("/a") == "2"


@simulated
async def test_a_malformed_write_is_refused(world: World) -> None:
    with pytest.raises(StoreRefused):
        await world.writer.write([], [Put("/a", "1"), Put("/a", "2")])
    with pytest.raises(StoreRefused):
        await world.writer.write([], [Put("/a", "1", lease_id=77)])
    many = [Put(f"/{number}", "") for number in range(128)]
    with pytest.raises(StoreRefused):
        await world.writer.write([], many)
    assert (await world.writer.write([], many[:127])).succeeded


def test_reports_are_true_in_many_runs() -> None:
    """Three hosts count up one key by guarded writes: each reported success counts exactly once."""
    fired: Counter[str] = Counter()

    async def count(world: World, host: str, done: Counter[str]) -> None:
        store = FakeClusterStore(world.server, host)
        writer = GuardedWriter(store, world.clock, SeededRandomness(host), KEYS)
        for _ in range(30):
            try:
                kv = await store.get("/n")
                value, revision = (int(kv.value), kv.mod_revision) if kv else (0, 0)
                result = await writer.write(
                    [unchanged("/n", revision)], [Put("/n", str(value + 1))]
                )
                done["succeeded" if result.succeeded else "failed"] += 1
            except StoreUnavailable:
                done["unavailable"] += 1
            except OutcomeUnknown:
                done["unknown"] += 1

    for seed in range(40):

        async def main(_: SimLoop, seed: int = seed) -> None:
            world = World(seed)
            done: Counter[str] = Counter()
            for host in "abc":
                faults = world.server.faults(host)
                faults.lose_request = faults.lose_reply = faults.late_apply = 0.15
                faults.slow = 0.2
            await asyncio.gather(*(count(world, host, done) for host in "abc"))
            await world.clock.sleep(20_000)
            total = int(world.value("/n") or 0)
            low, high = done["succeeded"], done["succeeded"] + done["unknown"]
            assert low <= total <= high, f"seed {seed}: {total} not in {low}..{high}: {done}"
            fired.update(world.server.fired)
            fired.update(done)

        run(main, seed)
    for name in ("lose_request", "lose_reply", "late_apply", "succeeded", "failed", "unavailable"):
        assert fired[name] > 20, f"{name} hardly ever happened: {fired}"
