"""The verbs of a primary: what they change, what they refuse, what survives a restart."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace

import pytest

from tests.support.primary_world import CAP, DISKS, FAST, VM, PrimaryWorld, in_world
from vmreplica.core.cycle import CycleKind, Disk
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import (
    OperationRecord,
    OperationState,
    PolicyRecord,
    ReplicationRecord,
    parse,
    render,
)
from vmreplica.core.replication_state import ReplicationState
from vmreplica.ports.cluster_store import Put
from vmreplica.testing.fake_change_source import ModelVm
from vmreplica.testing.fake_vm_host import model_vm

S = ReplicationState


async def refused(act: Awaitable[object]) -> Problem:
    with pytest.raises(Problem) as caught:
        await act
    return caught.value


async def record(world: PrimaryWorld) -> ReplicationRecord | None:
    kv = await world.store.get(Keys("p").replication(world.replica.replica_id))
    return parse(ReplicationRecord, kv.value) if kv else None


async def operation(world: PrimaryWorld, operation_id: str) -> OperationRecord | None:
    kv = await world.store.get(Keys("p").operation(operation_id))
    return parse(OperationRecord, kv.value) if kv else None


def test_enable_waits_for_start() -> None:
    async def story(world: PrimaryWorld) -> None:
        done = await world.role.enable("guest1", CAP, FAST)
        assert done.changed
        assert done.view.state is S.READY_FOR_INITIAL
        again = await world.role.enable(VM, CAP, FAST)
        assert not again.changed
        assert again.view.replica_id == done.view.replica_id
        assert world.host.vms[VM].role == "primary"
        await world.clock.sleep(20_000)
        assert world.replica.seq == 0
        request = world.replica.request
        assert (request.vm_uuid, request.vm_name, request.disks) == (VM, "guest1", DISKS)
        assert request.primary_access_point == "p1.example:7444"
        assert (await refused(world.role.enable("guest1", "other:7443", FAST))).reason is (
            Reason.STATE_REFUSES
        )

    in_world(story)


def test_enable_refuses_what_cannot_run_all_at_once() -> None:
    async def story(world: PrimaryWorld) -> None:
        assert (await refused(world.role.enable("nobody", CAP, FAST))).reason is Reason.UNKNOWN_VM
        vm = world.host.vms[VM]
        for change, reason in (
            ({"running": False}, Reason.STATE_REFUSES),
            ({"persistent": False}, Reason.STATE_REFUSES),
            ({"role": "replica"}, Reason.WRONG_SIDE),
        ):
            world.host.vms[VM] = replace(vm, **change)
            problem = await refused(world.role.enable("guest1", CAP, FAST))
            assert problem.reason is reason
            assert problem.remedy
        raw = vm.xml.replace("type='qcow2'", "type='raw'")
        world.host.vms[VM] = replace(vm, xml=raw)
        problem = await refused(world.role.enable("guest1", CAP, FAST))
        assert problem.reason is Reason.DISK_NOT_TRACKABLE
        assert "vda" in problem.message
        assert "vdb" in problem.message
        world.host.vms[VM] = vm
        for policy, field in (
            (PolicyRecord(frequency_ms=4_999), "frequency_ms"),
            (PolicyRecord(frequency_ms=5_000, disks=("vdz",)), "policy.disks"),
        ):
            problem = await refused(world.role.enable("guest1", CAP, policy))
            assert (problem.reason, problem.field) == (Reason.BAD_FIELD, field)
        assert not world.link.replicas

    in_world(story)


def test_enable_passes_on_what_the_other_side_says() -> None:
    async def story(world: PrimaryWorld) -> None:
        world.link.faults.cap_down = True
        problem = await refused(world.role.enable("guest1", CAP, FAST))
        assert (problem.reason, problem.field) == (Reason.NODE_UNREACHABLE, "to")
        world.link.faults.cap_down = False
        world.link.faults.refuse_create = Problem(Reason.NO_NODE_FITS, "full")
        assert (await refused(world.role.enable("guest1", CAP, FAST))).reason is Reason.NO_NODE_FITS
        assert world.role.list() == ()
        assert world.host.vms[VM].role == ""

    in_world(story)


def test_a_disk_can_be_left_out() -> None:
    async def story(world: PrimaryWorld) -> None:
        await world.protect(replace(FAST, disks=("vda",)))
        assert world.replica.request.disks[1] == Disk("vdb", DISKS[1].size_bytes, excluded=True)
        world.vm.write("vdb", 3, 3)
        await world.acknowledged(2)
        assert set(world.replica.content) == {"vda"}

    in_world(story)


def test_start_at_a_time() -> None:
    async def story(world: PrimaryWorld) -> None:
        await world.role.enable("guest1", CAP, FAST)
        at_ms = world.clock.wall_ms() + 300_000
        assert (await world.role.start("guest1", at_ms)).changed
        assert not (await world.role.start("guest1", at_ms)).changed
        await world.clock.sleep(200_000)
        await world.restart()
        await world.clock.sleep(95_000)
        assert world.replica.seq == 0
        await world.until(lambda: world.replica.seq == 1, 20_000)

    in_world(story)


def test_the_initial_replication_is_an_operation_with_progress() -> None:
    async def story(world: PrimaryWorld) -> None:
        world.link.frame_ms = 1_000
        await world.role.enable("guest1", CAP, FAST)
        started = await world.role.start("guest1")
        assert started.operation_id
        assert not (await world.role.start("guest1")).changed
        seen = []
        while world.replica.seq == 0:
            await world.clock.sleep(1_500)
            view = await world.role.show("guest1")
            seen.append(view.initial_done_bytes)
            assert view.initial_total_bytes in (0, (200 + 19) * 65_536)
        assert seen == sorted(seen)
        assert len(set(seen)) >= 4
        await world.clock.sleep(500)
        ended = await operation(world, started.operation_id)
        assert ended is not None
        assert ended.state is OperationState.SUCCEEDED
        assert ended.done == ended.total == (200 + 19) * 65_536
        assert await world.state() is S.REPLICATING

    in_world(story)


@pytest.mark.parametrize("how", ["verb", "operation"])
def test_stop_initial_and_start_again(how: str) -> None:
    async def story(world: PrimaryWorld) -> None:
        world.link.frame_ms = 1_000
        await world.role.enable("guest1", CAP, FAST)
        operation_id = (await world.role.start("guest1")).operation_id
        await world.until(lambda: len(world.replica.frames) >= 3)
        if how == "verb":
            assert (await world.role.stop_initial("guest1")).changed
            assert not (await world.role.stop_initial("guest1")).changed
        else:
            running = await operation(world, operation_id)
            assert running is not None
            asked = replace(running, cancel_requested=True)
            await world.store.transaction(
                [], [Put(Keys("p").operation(operation_id), render(asked))]
            )
            await world.until(lambda: not world.vm.trackers)
            await world.clock.sleep(500)
        assert await world.state() is S.READY_FOR_INITIAL
        ended = await operation(world, operation_id)
        assert ended is not None and ended.state is OperationState.CANCELLED
        assert world.vm.job is None
        assert not world.vm.trackers
        await world.clock.sleep(20_000)
        assert world.replica.seq == 0
        world.link.frame_ms = 1
        again = await world.role.start("guest1")
        assert again.operation_id != operation_id
        await world.acknowledged()
        world.check()

    in_world(story)


def test_suspend_and_resume() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        assert (await world.role.suspend("guest1")).changed
        assert not (await world.role.suspend("guest1")).changed
        assert await world.state() is S.SUSPENDED
        seq = replica.seq
        world.vm.write("vda", 7, 7)
        await world.clock.sleep(60_000)
        await world.restart()
        await world.clock.sleep(60_000)
        assert replica.seq == seq
        assert (await refused(world.role.start("guest1"))).reason is Reason.STATE_REFUSES
        assert (await world.role.resume("guest1")).changed
        await world.acknowledged(limit_ms=2_000)
        assert replica.kinds[-1] is CycleKind.DELTA
        world.check()

    in_world(story)


def test_suspend_in_mid_cycle_ends_the_job() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        world.link.frame_ms = 1_000
        for cluster in range(600):
            world.vm.write("vda", cluster, cluster + 1)
        await world.until(lambda: len(replica.frames) >= 2)
        await world.role.suspend("guest1")
        assert world.vm.job is None
        await world.clock.sleep(120_000)
        assert replica.seq == 1
        world.link.frame_ms = 1
        await world.role.resume("guest1")
        await world.acknowledged()
        assert replica.kinds == [CycleKind.FULL, CycleKind.DELTA]
        assert len(world.vm.trackers) == 1
        world.check()

    in_world(story)


def test_set_changes_the_rhythm_and_refuses_what_is_fixed() -> None:
    async def story(world: PrimaryWorld) -> None:
        await world.protect(PolicyRecord(frequency_ms=600_000))
        assert (await world.role.set("guest1", lambda p: replace(p, frequency_ms=10_000))).changed
        assert not (await world.role.set("guest1", lambda p: p)).changed
        assert await world.acknowledged(limit_ms=11_000) <= 11_000
        await world.restart()
        assert (await world.role.show("guest1")).policy.frequency_ms == 10_000
        for change in (
            lambda p: replace(p, disks=("vda",)),
            lambda p: replace(p, folder="x"),
            lambda p: replace(p, recovery_points=4),
        ):
            assert (await refused(world.role.set("guest1", change))).reason is Reason.STATE_REFUSES
        problem = await refused(world.role.set("guest1", lambda p: replace(p, frequency_ms=1)))
        assert problem.reason is Reason.BAD_FIELD

    in_world(story)


def test_the_other_side_learns_the_policy() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        await world.until(lambda: replica.policies == [FAST], 6_000)
        slower = replace(FAST, frequency_ms=60_000)
        world.link.faults.cap_down = True
        assert (await world.role.set("guest1", lambda _: slower)).changed
        assert (await world.role.show("guest1")).policy == slower
        await world.clock.sleep(25_000)
        assert replica.policies == [FAST]
        world.link.faults.cap_down = False
        await world.until(lambda: replica.policies == [FAST, slower], 11_000)
        await world.clock.sleep(600_000)
        assert replica.policies == [FAST, slower]
        # Enabled anew with another policy: the replica that exists takes it over.
        await world.role.remove("guest1")
        other = replace(FAST, frequency_ms=30_000)
        await world.role.enable("guest1", CAP, other)
        await world.until(lambda: replica.policies[-1] == other, 6_000)

    in_world(story)


def test_remove_leaves_nothing_here_and_all_there() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        content = {target: dict(clusters) for target, clusters in replica.content.items()}
        assert await world.role.remove("guest1")
        assert await record(world) is None
        assert not world.vm.trackers
        assert world.host.vms[VM].role == ""
        assert not await world.role.remove("guest1")
        await world.clock.sleep(30_000)
        assert replica.content == content
        assert world.role.list() == ()
        # Enabled anew the same replica is found, and needs a full copy: nothing was tracked.
        await world.role.enable("guest1", CAP, FAST)
        await world.role.start("guest1")
        await world.acknowledged()
        assert replica.kinds[-1] is CycleKind.FULL
        world.check()

    in_world(story)


def test_verbs_on_a_vm_that_is_not_protected() -> None:
    async def story(world: PrimaryWorld) -> None:
        for verb in (world.role.start, world.role.suspend, world.role.resume, world.role.show):
            assert (await refused(verb("guest1"))).reason is Reason.STATE_REFUSES
            assert (await refused(verb("nobody"))).reason is Reason.UNKNOWN_VM
        assert (await refused(world.role.remove("nobody"))).reason is Reason.UNKNOWN_VM

    in_world(story)


def test_changed_disks_are_an_error_with_a_remedy() -> None:
    async def story(world: PrimaryWorld) -> None:
        await world.protect()
        world.vm.disks = (Disk("vda", 128 << 20), DISKS[1], Disk("vdc", 1 << 20))
        await world.clock.sleep(10_000)
        view = await world.role.show("guest1")
        assert view.state is S.ERROR
        assert "vda" in view.last_problem
        assert "vdc" in view.last_problem
        world.vm.disks = DISKS
        await world.acknowledged(limit_ms=20_000)
        await world.clock.sleep(100)
        assert await world.state() is S.REPLICATING

    in_world(story)


def test_the_store_may_be_away_while_cycles_go_on() -> None:
    async def story(world: PrimaryWorld) -> None:
        await world.protect()
        world.store.faults.refuse = 1.0
        world.vm.lose_tracking()
        await world.acknowledged(3)
        world.check()
        world.store.faults.heal()
        await world.clock.sleep(15_000)
        kept = await record(world)
        assert kept is not None
        assert kept.state == "Replicating"

    in_world(story)


def test_cycles_do_not_write_to_the_store() -> None:
    async def story(world: PrimaryWorld) -> None:
        await world.protect()
        await world.clock.sleep(3_000)
        revision = world.store.server.state.revision
        await world.acknowledged(10)
        assert world.store.server.state.revision == revision

    in_world(story)


def test_initials_run_three_at_a_time() -> None:
    async def story(world: PrimaryWorld) -> None:
        world.link.frame_ms = 200
        uuids = [f"22222222-2222-4333-8444-{n:012d}" for n in range(7)]
        for n, vm_uuid in enumerate(uuids):
            vm = world.source.add(ModelVm(vm_uuid, DISKS))
            for cluster in range(100):
                vm.write("vda", cluster, n + 1)
            world.host.add(model_vm(f"many{n}", vm_uuid, DISKS))
            await world.role.enable(f"many{n}", CAP, FAST)
        for n in range(7):
            await world.role.start(f"many{n}")
        most = 0
        while any(replica.seq == 0 for replica in world.link.replicas.values()):
            fulls = [r for r in world.link.replicas.values() if r.seq == 0 and r.part_of[0]]
            most = max(most, len(fulls))
            await world.clock.sleep(50)
        assert most == 3
        assert len({view.replica_id for view in world.role.list()}) == 7
        assert (await refused(world.role.show("nobody"))).reason is Reason.UNKNOWN_VM

    in_world(story)


@pytest.mark.parametrize(
    ("policy", "reachable", "started"),
    [("start", True, True), ("start", False, True), ("hold", False, False), ("hold", True, True)],
)
def test_after_a_boot_the_other_side_is_asked_first(
    policy: str, reachable: bool, started: bool
) -> None:
    async def story(world: PrimaryWorld) -> None:
        world.host.vms[VM] = replace(world.host.vms[VM], autostart=True)
        await world.protect()
        assert not world.host.vms[VM].autostart
        world.host.vms[VM] = replace(world.host.vms[VM], running=False)
        world.vm.running = False
        await world.restart()
        await world.clock.sleep(70_000)
        assert not world.host.vms[VM].running, "only a boot makes it due"
        world.host.booted = True
        world.limits = replace(world.limits, return_policy=policy)
        world.link.faults.cap_down = not reachable
        await world.restart()
        await world.clock.sleep(50_000)
        assert world.host.vms[VM].running == reachable
        await world.clock.sleep(20_000)
        assert world.host.vms[VM].running == started

    in_world(story)
