"""Operations, the request log and the lease they share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from vmreplica.coordination.operations import Operations, problem_fields
from vmreplica.coordination.request_log import RequestLog
from vmreplica.coordination.shared_lease import SharedLease
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import OperationState
from vmreplica.ports.cluster_store import OutcomeUnknown, Put, StoreUnavailable
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.seeded_randomness import SeededRandomness
from vmreplica.testing.sim_loop import SimLoop, run

KEYS = Keys("c")
DAY_MS = 24 * 3_600_000


class World:
    def __init__(self) -> None:
        self.server = FakeStoreServer(1)
        self.faults = self.server.faults("h")
        self.store = FakeClusterStore(self.server, "h")
        self.clock = FakeClock()
        self.operations = Operations(self.store, self.clock, SeededRandomness(1), KEYS)
        self.log = RequestLog(self.store, self.clock, KEYS)

    def writes(self) -> int:
        return len(self.server.state.history)


def simulated(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    def wrapped() -> None:
        async def main(_: SimLoop) -> None:
            await test(World())

        run(main, 1)

    wrapped.__name__ = test.__name__
    return wrapped


# ---- operations ----


@simulated
async def test_a_life(world: World) -> None:
    running = await world.operations.create("replica.remove", "vm1", unit="bytes", step="begin")
    record = await world.operations.get(running.operation_id)
    assert (record.verb, record.target, record.state, record.step, record.unit) == (
        ("replica.remove", "vm1", OperationState.RUNNING, "begin", "bytes")
    )
    assert 0 <= record.started_ms - FakeClock.EPOCH_MS < 1_000
    waiting = asyncio.create_task(world.operations.wait(running.operation_id))
    await running.progress(step="copying", done=1, total=10)
    await world.clock.sleep(2_000)
    assert not waiting.done()
    await running.succeed({"files": "3"})
    ended = await asyncio.wait_for(waiting, 5)
    assert (ended.state, ended.result, ended.step, ended.done) == (
        (OperationState.SUCCEEDED, {"files": "3"}, "copying", 1)
    )
    assert ended.finished_ms > ended.started_ms
    await world.clock.sleep(DAY_MS)
    assert (await world.operations.get(running.operation_id)) == ended
    await world.clock.sleep(DAY_MS / 5)
    with pytest.raises(Problem) as caught:
        await world.operations.get(running.operation_id)
    assert caught.value.reason is Reason.UNKNOWN_OPERATION


@simulated
async def test_a_running_one_outlives_its_process(world: World) -> None:
    running = await world.operations.create("failover.start", "vm1")
    await world.clock.sleep(3 * DAY_MS)
    resumed = await world.operations.resume(running.operation_id)
    assert resumed.record == running.record
    again = await world.operations.create(
        "failover.start", "vm1", operation_id=running.operation_id
    )
    assert again.record == running.record


@simulated
async def test_progress_is_written_once_a_second_at_most(world: World) -> None:
    running = await world.operations.create("v", "t")
    before = world.writes()
    for number in range(100):
        await running.progress(done=number)
        await world.clock.sleep(50)
    assert 4 <= world.writes() - before <= 5
    before = world.writes()
    await running.progress(step="another")
    await running.progress(step="another", done=7)
    assert world.writes() - before == 1, "a new step is shown at once, the rest waits"
    world.faults.refuse = True
    await world.clock.sleep(2_000)
    await running.progress(done=8)
    world.faults.refuse = False
    await world.clock.sleep(2_000)
    await running.progress(done=9)
    assert (await world.operations.get(running.operation_id)).done == 9


@simulated
async def test_cancelling_is_a_wish(world: World) -> None:
    running = await world.operations.create("v", "t")
    assert not running.cancel_requested
    asked = await world.operations.request_cancel(running.operation_id)
    assert asked.state is OperationState.RUNNING
    assert (await running.refresh()).cancel_requested
    assert running.cancel_requested
    await running.cancelled()
    assert running.record.state is OperationState.CANCELLED
    late = await world.operations.request_cancel(running.operation_id)
    assert late == running.record


@simulated
async def test_a_finished_one_never_changes(world: World) -> None:
    running = await world.operations.create("v", "t")
    problem = Problem(Reason.NO_SPACE, "Full.", field="path", value="/x", remedy="Free.", epoch=3)
    await running.fail(problem)
    assert (
        running.record.problem
        == problem_fields(problem)
        == {
            "reason": "NO_SPACE",
            "message": "Full.",
            "field": "path",
            "value": "/x",
            "remedy": "Free.",
            "retryable": "true",
            "epoch": "3",
        }
    )
    ended = running.record
    await running.succeed()
    await running.progress(step="more")
    assert await world.operations.get(running.operation_id) == ended


@simulated
async def test_finishing_repeats_until_the_outcome_is_known(world: World) -> None:
    running = await world.operations.create("v", "t")
    world.faults.next_write("lost_request", "lost_reply", "late_apply")
    await running.succeed({"a": "b"})
    assert running.record.state is OperationState.SUCCEEDED
    stored = await world.operations.get(running.operation_id)
    assert stored.result == {"a": "b"}


@simulated
async def test_changes_of_two_do_not_undo_each_other(world: World) -> None:
    running = await world.operations.create("v", "t")
    await asyncio.gather(
        world.operations.update(running.operation_id, done=5),
        world.operations.request_cancel(running.operation_id),
        world.operations.update(running.operation_id, step="s"),
    )
    record = await world.operations.get(running.operation_id)
    assert (record.done, record.cancel_requested, record.step) == (5, True, "s")


@simulated
async def test_creating_with_an_unknown_outcome_is_repeated_by_its_id(world: World) -> None:
    world.faults.next_write("lost_reply")
    with pytest.raises(OutcomeUnknown):
        await world.operations.create("v", "t", operation_id="x")
    first = await world.operations.get("x")
    await world.clock.sleep(5_000)
    assert (await world.operations.create("v", "t", operation_id="x")).record == first


@simulated
async def test_they_are_listed_oldest_first(world: World) -> None:
    names = []
    for number in range(5):
        names.append((await world.operations.create("v", str(number))).operation_id)
        await world.clock.sleep(10)
    assert [r.operation_id for r in await world.operations.list()] == names


@simulated
async def test_waiting_ends_in_time_and_lives_through_an_outage(world: World) -> None:
    running = await world.operations.create("v", "t")
    record = await world.operations.wait(running.operation_id, 3_000)
    assert record.state is OperationState.RUNNING
    waiting = asyncio.create_task(world.operations.wait(running.operation_id))
    world.faults.refuse = True
    await world.clock.sleep(30_000)
    with pytest.raises(StoreUnavailable):
        await world.operations.wait(running.operation_id, 1_000)
    world.faults.refuse = False
    await running.succeed()
    assert (await asyncio.wait_for(waiting, 5)).state is OperationState.SUCCEEDED
    for unknown in ("none", ""):
        with pytest.raises(Problem):
            await world.operations.wait(unknown)


# ---- request log ----


class Act:
    """Counts how often it was done; slow."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.count = 0
        self.fails = 0

    async def __call__(self) -> str:
        await self.clock.sleep(500)
        if self.fails:
            self.fails -= 1
            raise Problem(Reason.BUSY, "Not now.")
        self.count += 1
        return f"answer {self.count}"


@simulated
async def test_a_repeated_request_gets_the_first_answer(world: World) -> None:
    act = Act(world.clock)
    assert await world.log.once("r1", act) == "answer 1"
    assert await world.log.once("r1", act) == "answer 1"
    other = RequestLog(FakeClusterStore(world.server, "other"), world.clock, KEYS)
    assert await other.once("r1", act) == "answer 1"
    assert await other.once("r2", act) == "answer 2"
    assert await world.log.recorded("r2") == "answer 2"
    assert act.count == 2
    await world.clock.sleep(DAY_MS)
    assert await world.log.recorded("r1") == "answer 1"
    await world.clock.sleep(DAY_MS / 5)
    assert await world.log.recorded("r1") is None


@simulated
async def test_duplicates_at_the_same_time_are_done_once(world: World) -> None:
    act = Act(world.clock)
    answers = await asyncio.gather(*(world.log.once("r", act) for _ in range(5)))
    assert answers == ["answer 1"] * 5
    assert act.count == 1


@simulated
async def test_a_failure_is_not_recorded(world: World) -> None:
    act = Act(world.clock)
    act.fails = 1
    results = await asyncio.gather(
        *(world.log.once("r", act) for _ in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [Problem] * 3
    assert await world.log.once("r", act) == "answer 1"


@simulated
async def test_without_an_id_everything_is_done(world: World) -> None:
    act = Act(world.clock)
    assert [await world.log.once("", act), await world.log.once("", act)] == [
        "answer 1",
        "answer 2",
    ]


@simulated
async def test_two_processes_agree_on_the_first_recorded_answer(world: World) -> None:
    act = Act(world.clock)
    other = RequestLog(FakeClusterStore(world.server, "other"), world.clock, KEYS)
    answers = await asyncio.gather(world.log.once("r", act), other.once("r", act))
    assert answers[0] == answers[1]
    assert answers[0] == await world.log.recorded("r")


@simulated
async def test_an_answer_is_given_although_it_cannot_be_recorded(world: World) -> None:
    async def act() -> str:
        world.faults.refuse = True
        return "done"

    assert await world.log.once("r", act) == "done"
    with pytest.raises(StoreUnavailable):
        await world.log.once("r", act)


@simulated
async def test_who_waits_for_a_cancelled_first_does_not_hang(world: World) -> None:
    act = Act(world.clock)
    first = asyncio.create_task(world.log.once("r", act))
    await world.clock.sleep(100)
    second = asyncio.create_task(world.log.once("r", act))
    await world.clock.sleep(100)
    first.cancel()
    assert await asyncio.wait_for(second, 5) == "answer 1"
    assert first.cancelled()


# ---- shared lease ----


@simulated
async def test_a_shared_lease_lives_long_enough_for_each_key(world: World) -> None:
    shared = SharedLease(world.store, world.clock, keep_ms=60_000)
    used: dict[str, int] = {}
    for number in range(40):
        lease_id = await shared.lease_id()
        key = f"/k{number}"
        await world.store.transaction([], [Put(key, "", lease_id)])
        used[key] = world.clock.boottime_ms()
        now_ms = world.clock.boottime_ms()
        for known, put_ms in used.items():
            if now_ms - put_ms <= 60_000:
                assert known in world.server.state.live
            if now_ms - put_ms > 71_000:
                assert known not in world.server.state.live
        await world.clock.sleep(3_000)
    assert len(world.server.state.leases) <= 8
