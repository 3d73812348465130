"""LeaseKeeper: who may act certainly still holds the lease, whatever the way to the store does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vmreplica.coordination.lease_keeper import LeaseKeeper
from vmreplica.core.lease_timing import (
    BROKER_LEASE,
    NODE_LEASE,
    LeaseTiming,
    check_lease_timing,
    deadline_ms,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.cluster_store import Put, StoreUnavailable
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.sim_loop import SimLoop, run


class World:
    """One host with a lease on a fake cluster."""

    def __init__(self, seed: int = 1, *, drift: float = 0.0, keeper: Any = None) -> None:
        self.server = FakeStoreServer(seed)
        self.faults = self.server.faults("h")
        self.store = FakeClusterStore(self.server, "h")
        self.clock = FakeClock(drift=drift)
        make = keeper or (lambda store, clock: LeaseKeeper.with_timing(store, clock, NODE_LEASE))
        self.keeper: LeaseKeeper = make(self.store, self.clock)
        self.deadlines: list[int] = []
        self.keeper.on_deadline.append(self.deadlines.append)

    def lease_stands(self) -> bool:
        return self.keeper.lease_id in self.server.state.leases


def test_the_deadline_is_send_time_plus_granted_minus_margin() -> None:
    assert deadline_ms(10_000, 6_000, 1_000) == 15_000


@pytest.mark.parametrize("timing", [NODE_LEASE, BROKER_LEASE])
def test_the_defaults_are_allowed(timing: LeaseTiming) -> None:
    check_lease_timing(timing)


@pytest.mark.parametrize(
    ("timing", "field"),
    [
        (LeaseTiming(6_000, 1_501, 1_750, 1_000), "x.ttl_ms"),
        (LeaseTiming(4_000, 1_500, 1_500, 1_000), "x.ttl_ms"),
        (LeaseTiming(0, 1, 1, 0), "x.ttl_ms"),
        (LeaseTiming(6_000, 0, 1, 0), "x.keepalive_ms"),
        (LeaseTiming(6_000, 1, -5, 0), "x.try_ms"),
        (LeaseTiming(6_000, 1, 1, -1), "x.margin_ms"),
    ],
)
def test_a_timing_that_one_lost_keepalive_ends_is_refused(timing: LeaseTiming, field: str) -> None:
    with pytest.raises(Problem) as caught:
        check_lease_timing(timing, "x")
    assert (caught.value.reason, caught.value.field) == (Reason.BAD_CONFIG, field)


def test_the_remedy_names_a_ttl_that_is_allowed() -> None:
    with pytest.raises(Problem, match="4500 ms") as caught:
        check_lease_timing(LeaseTiming(4_000, 1_500, 1_500, 1_000))
    assert "5500" in caught.value.remedy
    check_lease_timing(LeaseTiming(5_500, 1_500, 1_500, 1_000))


def test_the_keeper_refuses_such_a_timing() -> None:
    async def main(_: SimLoop) -> None:
        with pytest.raises(Problem):
            LeaseKeeper(
                FakeClusterStore(FakeStoreServer()),
                FakeClock(),
                ttl_ms=3_000,
                keepalive_ms=1_000,
                try_ms=1_000,
                margin_ms=500,
            )

    run(main, 1)


def test_a_slow_answer_does_not_move_the_deadline() -> None:
    async def main(_: SimLoop) -> None:
        world = World()
        world.faults.latency_ms = (1_000.0, 1_000.0)
        assert not world.keeper.may_act()
        assert world.keeper.deadline_boottime_ms() == 0
        sent_ms = world.clock.boottime_ms()
        lease = await world.keeper.acquire()
        assert world.clock.boottime_ms() >= sent_ms + 1_000
        assert lease.ttl_ms == world.keeper.ttl_ms == 6_000
        assert world.keeper.deadline_boottime_ms() == sent_ms + 5_000
        assert world.keeper.heard_age_ms() >= 1_000
        assert world.deadlines == [sent_ms + 5_000]

    run(main, 1)


@pytest.mark.parametrize("way", ["cut", "refuse"])
def test_an_outage_shorter_than_the_lease_is_lived_through(way: str) -> None:
    async def main(loop: SimLoop) -> None:
        world = World()
        await world.keeper.acquire()
        lease_id = world.keeper.lease_id
        running = asyncio.create_task(world.keeper.run())
        for _ in range(5):
            answered = asyncio.Event()
            world.keeper.on_deadline.append(lambda _, answered=answered: answered.set())
            await answered.wait()
            setattr(world.faults, way, True)
            await world.clock.sleep(4_000)
            assert world.keeper.may_act()
            setattr(world.faults, way, False)
            await world.clock.sleep(1_000)
            assert world.keeper.may_act()
            assert world.lease_stands()
        assert world.keeper.lease_id == lease_id
        assert not running.done()
        running.cancel()

    run(main, 1)


@pytest.mark.parametrize("way", ["cut", "refuse"])
def test_an_outage_longer_than_the_lease_ends_it(way: str) -> None:
    async def main(loop: SimLoop) -> None:
        world = World()
        await world.keeper.acquire()
        await world.store.transaction([], [Put("/node", "", world.keeper.lease_id)])
        running = asyncio.create_task(world.keeper.run())
        await world.clock.sleep(4_000)
        setattr(world.faults, way, True)
        await world.clock.sleep(12_000)
        assert not world.lease_stands()
        assert not running.done(), "nobody has told it yet"
        assert not world.keeper.may_act()
        setattr(world.faults, way, False)
        await asyncio.wait_for(running, 5)
        assert world.keeper.gone
        assert world.deadlines[-1] == 0 == world.keeper.deadline_boottime_ms()
        assert world.deadlines[:-1] == sorted(world.deadlines[:-1])
        first = world.keeper.lease_id
        await world.keeper.acquire()
        assert world.keeper.lease_id != first
        assert world.keeper.may_act()

    run(main, 1)


def test_the_same_lease_goes_on_after_a_change_of_leader() -> None:
    """Without a quorum no lease ends; the holder pauses and then acts again."""

    async def main(loop: SimLoop) -> None:
        world = World()
        await world.keeper.acquire()
        lease_id = world.keeper.lease_id
        running = asyncio.create_task(world.keeper.run())
        world.server.lose_quorum()
        await world.clock.sleep(60_000)
        assert not world.keeper.may_act()
        assert world.lease_stands()
        world.server.regain_quorum()
        await world.clock.sleep(3_000)
        assert world.keeper.may_act()
        assert world.keeper.lease_id == lease_id
        running.cancel()

    run(main, 1)


def test_release_stops_acting_before_the_lease_is_revoked() -> None:
    async def main(loop: SimLoop) -> None:
        world = World()
        await world.keeper.release()
        await world.keeper.acquire()
        running = asyncio.create_task(world.keeper.run())
        releasing = asyncio.create_task(world.keeper.release())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not world.keeper.may_act()
        assert world.lease_stands()
        await releasing
        assert not world.lease_stands()
        await asyncio.wait_for(running, 5)
        assert world.deadlines[-1] == 0

    run(main, 1)


def test_release_during_an_outage_is_no_error() -> None:
    async def main(loop: SimLoop) -> None:
        world = World()
        await world.keeper.acquire()
        world.faults.refuse = True
        await world.keeper.release()
        assert not world.keeper.may_act()
        with pytest.raises(StoreUnavailable):
            await world.keeper.acquire()

    run(main, 1)


def test_run_needs_a_lease() -> None:
    async def main(loop: SimLoop) -> None:
        with pytest.raises(RuntimeError):
            await World().keeper.run()

    run(main, 1)


class CountsFromTheReply(LeaseKeeper):
    """The classic mistake: the deadline counts from when the answer came."""

    def _answered(self, sent_ms: int, ttl_ms: int) -> None:
        del sent_ms
        super()._answered(self._clock.boottime_ms(), ttl_ms)


def _violated(seed: int, kind: type[LeaseKeeper]) -> bool:
    """Whether anybody acted without a lease in two virtual minutes of bad luck."""

    async def main(loop: SimLoop) -> bool:
        drift = loop.random.uniform(-0.01, 0.01)
        # A margin just above what the drift costs, so that it hides nothing else.
        timing = LeaseTiming(6_000, 1_500, 1_500, 100)
        world = World(
            seed,
            drift=drift,
            keeper=lambda store, clock: kind.with_timing(store, clock, timing),
        )
        world.server.expiry_late_ms = (0.0, 0.0)
        bad: list[float] = []

        def check() -> None:
            if world.keeper.lease_id and not world.lease_stands() and world.keeper.may_act():
                bad.append(loop.time())

        loop.after_step = check
        world.faults.lose_request = world.faults.lose_reply = 0.1
        world.faults.slow, world.faults.slow_ms = 0.5, (500.0, 2_600.0)
        give_up_at = loop.time() + 120
        while loop.time() < give_up_at and not bad:
            try:
                await world.keeper.acquire()
            except StoreUnavailable:
                continue
            running = asyncio.create_task(world.keeper.run())
            await asyncio.wait([running], timeout=loop.random.uniform(5, 30))
            world.faults.cut = True
            await asyncio.wait([running], timeout=loop.random.uniform(5, 10))
            world.faults.cut = False
            running.cancel()
        loop.after_step = None
        return bool(bad)

    return run(main, seed)


def test_nobody_acts_without_a_lease_in_many_runs() -> None:
    seeds = range(60)
    assert [seed for seed in seeds if _violated(seed, LeaseKeeper)] == []
    found = [seed for seed in seeds if _violated(seed, CountsFromTheReply)]
    assert found, "the check does not see the mistake that it is there for"
