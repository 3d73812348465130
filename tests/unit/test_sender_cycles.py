"""The primary's cycles against an owner that moves, dies, lies low, refuses and forgets."""

from __future__ import annotations

import pytest

from tests.support.primary_world import CAP, FAST, PrimaryWorld, in_world
from vmreplica.core.cycle import CycleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import PolicyRecord
from vmreplica.core.replication_state import ReplicationState

S = ReplicationState


def test_full_then_deltas_read_back_exactly() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        assert replica.kinds == [CycleKind.FULL]
        world.check()
        for n in range(5):
            world.vm.write("vda", n * 3, 9000 + n)
            world.vm.write("vdb", n * 7, 0)
            await world.acknowledged()
            world.check()
        assert set(replica.kinds[1:]) == {CycleKind.DELTA}
        assert replica.sizes[1:6] == [2] * 5
        assert await world.state() is S.REPLICATING
        assert len(world.vm.trackers) == 1

    in_world(story)


def test_cycles_keep_their_rhythm() -> None:
    async def story(world: PrimaryWorld) -> None:
        await world.protect()
        began = world.clock.boottime_ms()
        await world.acknowledged(10)
        assert 48_000 <= world.clock.boottime_ms() - began <= 52_000

    in_world(story)


def test_the_point_begins_only_after_the_owner_accepted() -> None:
    async def story(world: PrimaryWorld) -> None:
        world.link.faults.dead_nodes.add("r1")
        await world.role.enable("guest1", CAP, FAST)
        await world.role.start("guest1")
        await world.clock.sleep(20_000)
        assert world.vm.begun == 0
        world.link.faults.dead_nodes.clear()
        await world.until(lambda: world.replica.seq == 1)
        assert world.vm.begun == 1

    in_world(story)


@pytest.mark.parametrize("after", [0, 1, 3, 12])
def test_a_cut_stream_continues_the_same_cycle(after: int) -> None:
    async def story(world: PrimaryWorld) -> None:
        world.link.faults.cut_after_frames = [after]
        await world.protect()
        world.check()
        ids = {request.cycle_id for request in world.link.opens}
        assert len(ids) == 1
        assert [request.resume for request in world.link.opens] == [False, True]
        assert world.vm.begun == 1

    in_world(story)


def test_a_lost_acknowledgement_is_given_again() -> None:
    async def story(world: PrimaryWorld) -> None:
        await world.protect()
        world.vm.write("vda", 5, 77)
        world.link.faults.lost_acks = 1
        await world.acknowledged()
        head = world.replica.cycle_id
        await world.acknowledged()
        assert [o.cycle_id for o in world.link.opens].count(head) == 2
        assert world.replica.kinds == [CycleKind.FULL, CycleKind.DELTA, CycleKind.DELTA]
        world.check()

    in_world(story)


@pytest.mark.parametrize("relocated_after_ms", range(2_500, 7_000, 500))
def test_a_new_owner_gets_the_same_cycle_from_the_first_frame(relocated_after_ms: int) -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        for cluster in range(300):
            world.vm.write("vda", cluster, 40_000 + cluster)
        await world.until(lambda: len(replica.frames) >= 3)
        cycle_id, _ = replica.part_of
        world.link.faults.dead_nodes.add("r1")
        await world.clock.sleep(relocated_after_ms)
        world.link.relocate(replica.replica_id, "r2")
        took = await world.acknowledged(limit_ms=5_000)
        # Half a second until it is noticed, half a second until the next try, and the frames.
        assert took <= 1_500, f"{took} ms after relocation"
        assert cycle_id in replica.recent
        assert replica.kinds[-1] is CycleKind.DELTA
        world.check()

    in_world(story)


@pytest.mark.parametrize("relocated_after_ms", range(5_000, 11_000, 700))
def test_an_owner_that_died_between_cycles_is_not_waited_for(relocated_after_ms: int) -> None:
    """Connecting to it takes seconds; the broker is asked meanwhile."""

    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        await world.acknowledged()
        world.link.faults.dead_nodes.add("r1")
        world.vm.write("vda", 1, 11)
        await world.clock.sleep(relocated_after_ms)
        world.link.relocate(replica.replica_id, "r2")
        took = await world.acknowledged(limit_ms=8_000)
        assert took <= 1_500, f"{took} ms after relocation"
        world.check()

    in_world(story)


def test_a_silent_owner_is_left_when_the_broker_names_another() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        world.link.faults.silent = True
        world.vm.write("vda", 1, 5)
        await world.clock.sleep(8_000)
        seq = replica.seq
        world.link.faults.silent = False
        world.link.relocate(replica.replica_id, "r2")
        await world.until(lambda: replica.seq > seq, 4_000)
        world.check()

    in_world(story)


def test_stale_locations_cost_only_round_trips() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        world.link.relocate(replica.replica_id, "r2")
        world.link.faults.stale_locations = 3
        await world.acknowledged(2, limit_ms=14_000)
        world.check()

    in_world(story)


def test_relay_when_the_node_cannot_be_reached_and_direct_again_after_five_minutes() -> None:
    async def story(world: PrimaryWorld) -> None:
        world.link.faults.unreachable_nodes.add("r1")
        await world.protect()
        assert world.link.relayed_streams == 1
        assert world.link.direct_streams == 0
        assert (await world.role.show("guest1")).route == "relay"
        assert len(world.events.named("replication.route_changed")) == 1
        world.link.faults.unreachable_nodes.clear()
        await world.clock.sleep(240_000)
        assert world.link.direct_streams == 0
        await world.clock.sleep(70_000)
        assert world.link.direct_streams > 0
        assert (await world.role.show("guest1")).route == "direct"
        world.check()

    in_world(story)


def test_route_policies() -> None:
    async def story(world: PrimaryWorld) -> None:
        await world.protect(PolicyRecord(frequency_ms=5_000, route="relay"))
        assert (world.link.direct_streams, world.link.relayed_streams) == (0, 1)
        await world.role.set("guest1", lambda p: PolicyRecord(frequency_ms=5_000, route="direct"))
        world.link.faults.unreachable_nodes.add("r1")
        await world.clock.sleep(30_000)
        assert world.link.relayed_streams == 1

    in_world(story)


def test_at_most_eight_mebibytes_are_under_way() -> None:
    async def story(world: PrimaryWorld) -> None:
        world.link.frame_ms = 50
        world.source._frame_ms = 0
        for cluster in range(1000):
            world.vm.write("vda", cluster, cluster + 1)
        await world.role.enable("guest1", CAP, PolicyRecord(frequency_ms=5_000, compression="none"))
        await world.role.start("guest1")
        await world.until(lambda: world.replica.seq == 1)
        assert 7 << 20 <= world.link.most_under_way <= 8 << 20
        world.check()

    in_world(story)


def test_tracking_lost_is_healed_by_a_resynchronization() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        world.vm.lose_tracking()
        world.vm.write("vda", 3, 333)
        await world.acknowledged(2)
        assert replica.kinds == [CycleKind.FULL, CycleKind.FULL, CycleKind.DELTA]
        names = [event.name for event in world.events.all if event.name.startswith("resync")]
        assert names == ["resync.required", "resync.started", "resync.completed"]
        assert await world.state() is S.REPLICATING
        world.check()

    in_world(story)


def test_a_commit_after_we_gave_the_cycle_up_costs_no_full_copy() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        before = dict(world.vm.trackers)
        world.vm.write("vda", 8, 88)
        await world.acknowledged()
        # As if the new checkpoint had been dropped before the late commit was seen.
        late = replica.cycle_id
        world.vm.trackers = {**{k: {"vda": {8}} for k in before}}
        world.role._vms[replica.replica_id].head = None
        world.vm.write("vda", 9, 99)
        await world.acknowledged()
        assert late in replica.recent
        assert replica.kinds[1:] == [CycleKind.DELTA, CycleKind.DELTA]
        world.check()

    in_world(story)


def test_a_foreign_backup_defers_and_a_dead_job_is_only_a_missed_cycle() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        world.vm.foreign_job = True
        await world.clock.sleep(12_000)
        assert replica.seq == 1
        view = await world.role.show("guest1")
        assert view.health.value == "Warning"
        assert "another backup" in " ".join(view.health_reasons)
        world.vm.foreign_job = False
        await world.acknowledged(limit_ms=6_000)
        world.vm.fail_next_begin = True
        await world.acknowledged(limit_ms=12_000)
        assert world.events.named("cycle.missed")
        assert (await world.role.show("guest1")).health.value == "Normal"

    in_world(story)


def test_a_job_that_dies_in_mid_cycle() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        for cluster in range(600):
            world.vm.write("vda", cluster, cluster + 7)
        await world.until(lambda: len(replica.frames) >= 2)
        world.vm.end_job()
        await world.acknowledged()
        assert replica.kinds == [CycleKind.FULL, CycleKind.DELTA]
        world.check()

    in_world(story)


def test_a_permanent_refusal_is_an_error_that_heals_by_itself() -> None:
    async def story(world: PrimaryWorld) -> None:
        await world.protect()
        for _ in range(2):
            world.link.faults.refuse_open.append(
                Problem(Reason.REPLICA_DAMAGED, "a manifest is damaged")
            )
        await world.until(
            lambda: world.role._vms[world.replica.replica_id].standing.state is S.ERROR
        )
        view = await world.role.show("guest1")
        assert view.health.value == "Critical"
        assert "damaged" in view.last_problem
        await world.acknowledged()
        await world.clock.sleep(100)
        assert await world.state() is S.REPLICATING

    in_world(story)


def test_everything_down_for_two_minutes_heals_within_three_intervals() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect(PolicyRecord(frequency_ms=10_000))
        world.link.faults.cap_down = True
        world.link.faults.dead_nodes.add("r1")
        await world.clock.sleep(120_000)
        world.link.faults.cap_down = False
        world.link.faults.dead_nodes.clear()
        assert await world.acknowledged(limit_ms=30_000) <= 30_000
        assert set(replica.kinds[1:]) == {CycleKind.DELTA}
        world.check()

    in_world(story)


def test_a_restarted_agent_goes_on_with_deltas() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        for cluster in range(600):
            world.vm.write("vda", cluster, cluster + 7)
        await world.until(lambda: len(replica.frames) >= 2)
        await world.restart()
        await world.acknowledged(2)
        assert replica.kinds == [CycleKind.FULL, CycleKind.DELTA, CycleKind.DELTA]
        assert len(world.vm.trackers) == 1
        world.check()

    in_world(story)


def test_changed_definitions_travel_once() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        sent = [bool(o.domain_xml) for o in world.link.opens]
        assert sent == [True]
        await world.acknowledged()
        assert not world.link.opens[-1].domain_xml
        world.vm.definition = type(world.vm.definition)(domain_xml=b"<domain id='2'/>", nvram=b"x")
        await world.acknowledged(2)
        assert replica.definition == b"<domain id='2'/>"
        assert replica.nvram
        assert not world.link.opens[-1].domain_xml

    in_world(story)


def test_bandwidth_limit_of_the_vm() -> None:
    async def story(world: PrimaryWorld) -> None:
        policy = PolicyRecord(
            frequency_ms=5_000, compression="none", bandwidth_limit_bytes_per_s=1 << 20
        )
        began = world.clock.boottime_ms()
        await world.protect(policy)
        seconds = (world.clock.boottime_ms() - began) / 1000
        payload = world.replica.sizes[0] * 65_536
        assert seconds >= payload / (1 << 20) * 0.95 - 0.5
        world.check()

    in_world(story)


def test_dead_brokers_do_not_stop_replication_to_a_living_owner() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        world.link.faults.cap_down = True
        for n in range(3):
            world.vm.write("vda", n, 70 + n)
            await world.acknowledged(limit_ms=6_000)
            world.check()
        # Nor do they after a cycle whose end is not known.
        world.vm.write("vda", 9, 9)
        world.link.faults.lost_acks = 1
        await world.acknowledged(2, limit_ms=12_000)
        world.vm.fail_next_begin = True
        await world.acknowledged(2, limit_ms=20_000)
        world.check()
        assert set(replica.kinds[1:]) == {CycleKind.DELTA}

    in_world(story)


def test_an_outcome_that_is_unknown_keeps_both_checkpoints_until_it_is_known() -> None:
    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        world.vm.write("vda", 9, 9)
        world.link.faults.lost_acks = 1
        world.link.faults.cap_down = True
        before = replica.seq
        await world.until(lambda: replica.seq > before)
        # Acknowledged there, unknown here: and now the agent ends.
        world.link.faults.dead_nodes.add("r1")
        await world.restart()
        await world.clock.sleep(20_000)
        assert len(world.vm.trackers) == 2
        world.link.faults.cap_down = False
        world.link.faults.dead_nodes.clear()
        await world.acknowledged(2)
        assert set(replica.kinds[1:]) == {CycleKind.DELTA}
        assert len(world.vm.trackers) == 1
        world.check()

    in_world(story)
