"""Election, admission, settings and locating in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from broker_world import GIB, KEYS, World, play, wish

from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.cluster_store import Put


def test_the_next_candidate_leads_when_the_leader_dies() -> None:
    async def story(world: World) -> None:
        first = world.broker("b1")
        assert await world.leader() is first
        second, third = world.broker("b2"), world.broker("b3")
        await world.until(lambda: len(second.services.inventory.brokers()) == 3)
        assert first.holder.held() and not second.holder.held()
        await first.crash()
        await world.until(lambda: not first.holder.held())
        heir = await world.leader()
        assert heir in (second, third)
        await world.until(heir.holder.held)
        assert heir.events.names.count("broker.elected") == 1

    play(story)


@pytest.mark.parametrize("seed", range(5))
def test_at_most_one_may_act_and_holds_the_address(seed: int) -> None:
    async def story(world: World) -> None:
        brokers = [world.broker(f"b{i}") for i in range(3)]
        for turn in range(200):
            chosen = brokers[world.server.random.randrange(3)]
            if turn % 20 == 0:
                chosen.store.faults.cut = True
            if turn % 20 == 12:
                for broker in brokers:
                    broker.store.faults.heal()
            await asyncio.sleep(0.5)
            assert len(world.leaders()) <= 1
            assert sum(b.holder.held() for b in brokers) <= 1
        await world.leader()

    play(story, seed)


def test_a_clean_stop_hands_over_at_once() -> None:
    async def story(world: World) -> None:
        first = world.broker("b1")
        await world.leader()
        second = world.broker("b2")
        await world.until(lambda: len(second.services.inventory.brokers()) == 2)
        began = asyncio.get_running_loop().time()
        await first.services.stop()
        assert not first.holder.held()
        await world.until(second.services.election.may_act)
        assert asyncio.get_running_loop().time() - began < 0.3

    play(story)


def test_past_its_deadline_it_pauses_and_goes_on_with_the_same_lease() -> None:
    async def story(world: World) -> None:
        only = world.broker("b1")
        await world.leader()
        lease = next(iter(world.server.state.live)).split("/")[-1]
        world.server.lose_quorum()
        await world.until(lambda: not only.services.election.may_act())
        assert only.services.election.leads
        with pytest.raises(Problem) as refused:
            await only.services.settings.update({"fence": "none"})
        assert refused.value.reason is Reason.NO_LEADER
        world.server.regain_quorum()
        await world.until(only.services.election.may_act)
        assert only.events.names.count("broker.elected") in (1, 2)
        assert lease

    play(story)


def test_a_lost_lease_means_a_new_campaign() -> None:
    async def story(world: World) -> None:
        only = world.broker("b1")
        await world.leader()
        (key,) = [k for k in world.server.state.live if k.startswith(KEYS.elections)]
        world.server.expire(int(key.rsplit("/", 1)[1], 16))
        await world.until(lambda: only.events.names.count("broker.elected") == 2)
        assert "broker.resigned" in only.events.names

    play(story)


def test_admission_places_writes_and_repeats() -> None:
    async def story(world: World) -> None:
        await world.settings()
        await world.node("n1", running_vms=3)
        await world.node("n2")
        broker = world.broker("b1")
        await world.leader()
        await world.until(lambda: len(broker.services.inventory.live_nodes()) == 2)
        first = await broker.services.admission.admit(("p.example.org",), wish(1, "web"))
        assert first.changed
        assert first.record.placement_node == "n2"
        assert first.record.trust_group == "DEFAULT/p.example.org"
        assert first.record.folder_path == f"/s/{first.record.replica_id}.i1"
        assert world.owner(first.record.replica_id).epoch == 1
        live = world.server.state.live
        assert live[KEYS.definition(first.record.replica_id)].value == "<domain/>"
        again = await broker.services.admission.admit(("p.example.org",), wish(1, "web"))
        assert not again.changed
        assert again.record == first.record
        with pytest.raises(Problem) as refused:
            await broker.services.admission.admit(("p.example.org",), wish(1, "web", 2 * GIB))
        assert refused.value.reason is Reason.DISK_SHAPE_CHANGED
        twin = await world.admit(broker, 2, "web")
        assert twin.domain_name == f"web ({twin.replica_id[:8]})"

    play(story)


def test_equal_requests_at_once_make_one_replica_and_names_stay_unique() -> None:
    async def story(world: World) -> None:
        await world.settings()
        await world.node("n1")
        broker = world.broker("b1")
        await world.leader()
        await world.until(broker.services.inventory.live_nodes)
        made = await asyncio.gather(*(world.admit(broker, n % 4, "same") for n in range(12)))
        assert len({r.replica_id for r in made}) == 4
        assert len({r.domain_name for r in made}) == 4

    play(story)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"replication_enabled": "false"}, Reason.REPLICATION_DISABLED),
        ({"any_server": "false"}, Reason.NOT_AUTHORIZED),
        ({"default_storage_location": "/other"}, Reason.NO_NODE_FITS),
    ],
)
def test_admission_refuses(change: dict[str, str], reason: Reason) -> None:
    async def story(world: World) -> None:
        await world.settings(**change)
        await world.node("n1")
        broker = world.broker("b1")
        await world.leader()
        await world.until(broker.services.inventory.live_nodes)
        with pytest.raises(Problem) as refused:
            await world.admit(broker, 1)
        assert refused.value.reason is reason
        assert not world.owners()

    play(story)


def test_a_cluster_keeps_no_replica_of_its_own_vms() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        own = wish(1, "a", cap="r.example.org:7443")
        with pytest.raises(Problem) as refused:
            await broker.services.admission.admit(("r.example.org",), own)
        assert refused.value.field == "primary_access_point"

    play(story)


def test_a_standby_admits_nothing() -> None:
    async def story(world: World) -> None:
        world.broker("b1")
        await world.leader()
        standby = world.broker("b2")
        await standby.services.inventory.ready()
        with pytest.raises(Problem) as refused:
            await world.admit(standby, 1)
        assert refused.value.reason is Reason.NO_LEADER

    play(story)


def test_settings_are_versioned() -> None:
    async def story(world: World) -> None:
        broker = world.broker("b1")
        await world.leader()
        service = broker.services.settings
        both = {"any_server": "true", "default_storage_location": "/s"}
        assert await service.update(both) == (1, True)
        assert await service.update(both, expected_version=1) == (1, False)
        assert broker.services.inventory.settings.any_server
        with pytest.raises(Problem) as refused:
            await service.update({"verify": "before-ack"}, expected_version=7)
        assert refused.value.reason is Reason.STATE_REFUSES

    play(story)


def test_locate_tells_the_owner_or_why_not() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.until(broker.services.inventory.live_nodes)
        made = await world.admit(broker, 1)
        standby = world.broker("b2")
        await standby.services.inventory.ready()
        found = standby.services.locator.locate(made)
        assert (found.node, found.address, found.epoch) == ("n1", "n1:7444", 1)
        relayed = standby.services.locator.locate(made, relay=True)
        assert (relayed.address, relayed.server_name) == ("r.example.org:7443", "r.example.org")
        world.kill_node("n1")
        await world.until(lambda: not standby.services.inventory.live_nodes())
        with pytest.raises(Problem) as refused:
            standby.services.locator.locate(made)
        assert refused.value.reason is Reason.NODE_UNREACHABLE
        world.server.lose_quorum()
        await asyncio.sleep(15)
        with pytest.raises(Problem) as refused:
            standby.services.locator.locate(made)
        assert refused.value.reason is Reason.STORE_UNAVAILABLE

    play(story)


def test_a_name_that_fits_two_is_ambiguous() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.until(broker.services.inventory.live_nodes)
        one, two = await world.admit(broker, 1, "web"), await world.admit(broker, 2, "web")
        inventory = broker.services.inventory
        with pytest.raises(Problem) as refused:
            inventory.find("web")
        assert refused.value.reason is Reason.AMBIGUOUS_NAME
        assert one.replica_id in refused.value.message and two.replica_id in refused.value.message
        assert inventory.find(one.vm_uuid) == one
        assert inventory.find(two.replica_id) == two
        assert inventory.find("nobody") is None

    play(story)


def test_an_unreadable_record_is_ignored() -> None:
    async def story(world: World) -> None:
        await world.root.transaction([], [Put(KEYS.replica("x"), "not json")])
        broker = world.broker("b1")
        await world.leader()
        assert broker.services.inventory.replica("x") is None

    play(story)
