"""The broker's API objects in virtual time, with nodes that are a table of answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from broker_world import KEYS, Broker, World, play

from broker.api.mount import BrokerApi, api_objects
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.grpc_replica_link import GrpcReplicaLink
from vmreplica.core import records
from vmreplica.core.identity import Identity, Role, RoleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import (
    PolicyRecord,
    ReplicationRecord,
    parse,
    render,
)
from vmreplica.core.records import ReplicaRecord as Record
from vmreplica.ports.cluster_store import Put
from vmreplica.v1 import (
    connection_pb2,
    event_pb2,
    failover_pb2,
    location_pb2,
    node_pb2,
    replica_pb2,
    replication_pb2,
    settings_pb2,
    store_pb2,
    types_pb2,
)
from vmreplica.wire.call import Call
from vmreplica.wire.node_caller import NodeTarget

UUID = "11111111-2222-3333-4444-{:012d}"


def away(target: NodeTarget) -> Problem:
    return Problem(Reason.NODE_UNREACHABLE, f"{target.name} is away.", node=target.name)


class Nodes:
    """Implements NodeCaller: (target, method) → an answer, a problem, or a function."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.calls: list[tuple[str, str, Any]] = []
        self.brokers: dict[str, BrokerApi] = {}

    async def unary(
        self,
        target: NodeTarget,
        method: str,
        request: Any,
        response_type: Any,
        call: Call,
        *,
        timeout_ms: int = 10_000,
    ) -> Any:
        short = method.rpartition("/")[2]
        self.calls.append((target.name, short, request))
        if target.name in self.brokers:
            return await self._at_broker(target.name, method, request, call)
        answer = self.answers.get((target.name, short), away(target))
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Problem):
            raise answer
        return answer

    async def _at_broker(self, name: str, method: str, request: Any, call: Call) -> Any:
        service, _, rpc = method.removeprefix("/").partition("/")
        handler = getattr(self.brokers[name].services[service], snake(rpc))
        forwarded = Call(identity=call.identity, request_id=call.request_id, relayed_by="b9")
        return await handler(forwarded, request)

    async def stream(self, *_: Any) -> AsyncIterator[Any]:
        for nothing in ():
            yield nothing

    async def open_raw(self, *_: Any) -> Any:
        raise NotImplementedError


def snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


async def no_events(_: event_pb2.WatchEventsRequest) -> AsyncIterator[Any]:
    for nothing in ():
        yield nothing


class Direct(ChannelPool):
    """A link's calls straight at one API object, as the sender."""

    def __init__(self, api: Any) -> None:
        self._api = api

    async def unary(
        self, cap: str, server_name: str, method: str, request: Any, *_: Any, **__: Any
    ) -> Any:
        return await getattr(self._api, snake(method.rpartition("/")[2]))(caller(*SENDER), request)


def mount(broker: Broker, nodes: Nodes) -> BrokerApi:
    api = api_objects(broker.services, nodes, own_events=no_events, server=broker.name)
    nodes.brokers[broker.name] = api
    return api


def service(api: BrokerApi, name: str) -> Any:
    return api.services[f"vmreplica.v1.{name}Service"]


def caller(*names: str, role: RoleKind | None = None, group: str = "") -> Call:
    roles = (Role(KEYS.cluster, role, "x", group),) if role else ()
    return Call(identity=Identity(dns_names=names, roles=roles))


def admin() -> Call:
    return caller(role=RoleKind.ADMINISTRATOR)


SENDER = ("p.example.org",)


async def protect(world: World, number: int, name: str, node: str) -> str:
    """A VM of our own side."""
    replica_id = UUID.format(900 + number)
    record = ReplicationRecord(
        replica_id=replica_id,
        vm_uuid=UUID.format(number),
        vm_name=name,
        node=node,
        primary_access_point="r.example.org:7443",
        replica_access_point="other.example.org:7443",
        trust_group="g",
        state="Replicating",
        policy=PolicyRecord(),
        disks=(),
    )
    await world.root.transaction([], [Put(KEYS.replication(replica_id), render(record))])
    return replica_id


async def refusal(awaitable: Any) -> Problem:
    with pytest.raises(Problem) as refused:
        await awaitable
    return refused.value


def start(story: Callable[[World, Broker, BrokerApi, Nodes], Any]) -> None:
    async def wrapped(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        nodes = Nodes()
        await world.leader()
        for name in ("n1", "n2"):
            await world.node(name)
        await world.until(lambda: len(broker.services.inventory.live_nodes()) == 2)
        await story(world, broker, mount(broker, nodes), nodes)

    play(wrapped)


def test_wrong_side_names_the_right_access_point() -> None:
    async def story(world: World, broker: Broker, api: BrokerApi, nodes: Nodes) -> None:
        await protect(world, 1, "mine", "n1")
        await world.admit(broker, 2, "theirs")
        await world.until(lambda: broker.services.inventory.find_replication("mine"))
        get = replica_pb2.GetReplicaRequest(replica_id="mine")
        refused = await refusal(service(api, "Replica").get_replica(admin(), get))
        assert (refused.reason, refused.cap) == (Reason.WRONG_SIDE, "other.example.org:7443")
        nodes.answers["n1", "GetReplication"] = Problem(Reason.UNKNOWN_VM, "no")
        nodes.answers["n2", "GetReplication"] = Problem(Reason.UNKNOWN_VM, "no")
        suspend = replication_pb2.SuspendReplicationRequest(vm="theirs")
        refused = await refusal(service(api, "Replication").suspend_replication(admin(), suspend))
        assert (refused.reason, refused.cap) == (Reason.WRONG_SIDE, "p.example.org:7443")
        refused = await refusal(service(api, "Replica").get_replica(caller(*SENDER), get))
        assert refused.reason is Reason.UNKNOWN_REPLICA, "senders learn nothing of our own VMs"

    start(story)


def test_verbs_go_to_the_node_that_has_the_vm() -> None:
    async def story(world: World, broker: Broker, api: BrokerApi, nodes: Nodes) -> None:
        await protect(world, 1, "mine", "n2")
        await world.until(lambda: broker.services.inventory.find_replication("mine"))
        replication = service(api, "Replication")
        done = replication_pb2.SuspendReplicationResponse(changed=True)
        nodes.answers["n2", "SuspendReplication"] = done
        request = replication_pb2.SuspendReplicationRequest(vm="mine")
        assert await replication.suspend_replication(admin(), request) == done
        assert [c[:2] for c in nodes.calls] == [("n2", "SuspendReplication")]
        refused = await refusal(replication.suspend_replication(caller(*SENDER), request))
        assert refused.reason is Reason.ROLE_REQUIRED
        await protect(world, 2, "lost", "n7")
        await world.until(lambda: broker.services.inventory.find_replication("lost"))
        request = replication_pb2.SuspendReplicationRequest(vm="lost")
        refused = await refusal(replication.suspend_replication(admin(), request))
        assert refused.reason in (Reason.NODE_UNREACHABLE, Reason.UNKNOWN_NODE)

    start(story)


def test_enable_asks_every_node_for_the_vm() -> None:
    async def story(world: World, broker: Broker, api: BrokerApi, nodes: Nodes) -> None:
        replication = service(api, "Replication")
        request = replication_pb2.EnableReplicationRequest(vm="new", to="o.org:7443")
        unknown = Problem(Reason.UNKNOWN_VM, "no such VM")
        for name in ("n1", "n2"):
            for verb in ("GetReplication", "EnableReplication"):
                nodes.answers[name, verb] = unknown
        assert (await refusal(replication.enable_replication(admin(), request))).reason is (
            Reason.UNKNOWN_VM
        )
        here = replication_pb2.GetReplicationResponse()
        done = replication_pb2.EnableReplicationResponse(changed=True)
        nodes.answers["n2", "GetReplication"] = here
        nodes.answers["n2", "EnableReplication"] = done
        assert await replication.enable_replication(admin(), request) == done
        nodes.answers["n1", "GetReplication"] = here
        refused = await refusal(replication.enable_replication(admin(), request))
        assert refused.reason is Reason.AMBIGUOUS_NAME
        assert "n1, n2" in refused.message
        nodes.answers["n1", "GetReplication"] = unknown
        nodes.answers["n2", "GetReplication"] = unknown
        nodes.answers["n2", "EnableReplication"] = Problem(Reason.DISK_NOT_TRACKABLE, "vdb")
        refused = await refusal(replication.enable_replication(admin(), request))
        assert refused.reason is Reason.DISK_NOT_TRACKABLE

    start(story)


def test_lists_show_what_one_may_see_and_records_where_owners_are_silent() -> None:
    async def story(world: World, broker: Broker, api: BrokerApi, nodes: Nodes) -> None:
        first = await world.admit(broker, 1, "a")
        await world.admit(broker, 2, "b")
        replica = service(api, "Replica")

        def answer(request: replica_pb2.GetReplicaRequest) -> Any:
            if request.replica_id != first.replica_id:
                return Problem(Reason.NODE_UNREACHABLE, "away")
            shown = types_pb2.Replica(replica_id=first.replica_id, vm_name="a", acked_seq=9)
            shown.state = types_pb2.REPLICATION_STATE_REPLICATING
            return replica_pb2.GetReplicaResponse(replica=shown)

        for name in ("n1", "n2"):
            nodes.answers[name, "GetReplica"] = answer
        everything = replica_pb2.ListReplicasRequest()
        items = (await replica.list_replicas(admin(), everything)).items
        assert {i.vm_name: i.acked_seq for i in items} == {"a": 9, "b": 0}
        silent = next(i for i in items if i.vm_name == "b")
        assert silent.health == types_pb2.HEALTH_WARNING and silent.epoch == 1
        assert len((await replica.list_replicas(caller(*SENDER), everything)).items) == 2
        assert not (await replica.list_replicas(caller("x.other.org"), everything)).items
        operator = caller(role=RoleKind.OPERATOR, group="DEFAULT/p.example.org")
        assert len((await replica.list_replicas(operator, everything)).items) == 2
        stranger = caller(role=RoleKind.OPERATOR, group="g")
        assert not (await replica.list_replicas(stranger, everything)).items
        running = replica_pb2.ListReplicasRequest(filter="state=Replicating")
        assert [i.vm_name for i in (await replica.list_replicas(admin(), running)).items] == ["a"]
        paged = replica_pb2.ListReplicasRequest(page_size=1)
        answer_one = await replica.list_replicas(admin(), paged)
        paged.page_token = answer_one.next_page_token
        answer_two = await replica.list_replicas(admin(), paged)
        names = {answer_one.items[0].vm_name, answer_two.items[0].vm_name}
        assert names == {"a", "b"} and not answer_two.next_page_token

    start(story)


def test_get_follows_the_owner_while_it_changes() -> None:
    async def story(world: World, broker: Broker, api: BrokerApi, nodes: Nodes) -> None:
        made = await world.admit(broker, 1, "a")
        old = world.owner(made.replica_id).node
        new = "n2" if old == "n1" else "n1"
        nodes.answers[old, "GetReplica"] = Problem(Reason.NOT_OWNER, "not me")
        nodes.answers[new, "GetReplica"] = lambda r: replica_pb2.GetReplicaResponse(
            replica=types_pb2.Replica(replica_id=r.replica_id, acked_seq=4)
        )
        request = replica_pb2.GetReplicaRequest(replica_id="a")
        asked = asyncio.ensure_future(service(api, "Replica").get_replica(caller(*SENDER), request))
        await asyncio.sleep(0.5)
        await world.release(made.replica_id)
        answer = await asked
        assert answer.replica.acked_seq == 4
        assert answer.replica.replica_access_point == "r.example.org:7443"
        nodes.answers[new, "GetReplica"] = Problem(Reason.REPLICA_DAMAGED, "broken")
        refused = await refusal(service(api, "Replica").get_replica(admin(), request))
        assert refused.reason is Reason.REPLICA_DAMAGED, "not hidden by following"

    start(story)


def test_a_standby_forwards_once_and_says_no_leader_in_the_end() -> None:
    async def story(world: World, broker: Broker, api: BrokerApi, nodes: Nodes) -> None:
        standby = world.broker("b2")
        await world.until(lambda: len(standby.services.inventory.brokers()) == 2)
        other = service(mount(standby, nodes), "Settings")
        request = settings_pb2.UpdateSettingsRequest(settings={"verify": "before-ack"})
        assert (await other.update_settings(admin(), request)).version == 2
        assert nodes.calls[-1][:2] == ("b1", "UpdateSettings")
        passed_on = admin()
        passed_on.relayed_by = "b1"
        refused = await refusal(other.update_settings(passed_on, request))
        assert refused.reason is Reason.NO_LEADER
        await broker.crash()
        del nodes.brokers["b1"]
        began = asyncio.get_running_loop().time()
        world.server.lose_quorum()
        refused = await refusal(other.update_settings(admin(), request))
        assert refused.reason is Reason.NO_LEADER
        assert 4.9 < asyncio.get_running_loop().time() - began < 7

    start(story)


def test_a_repeated_request_is_answered_as_the_first_but_to_its_caller_only() -> None:
    async def story(world: World, broker: Broker, api: BrokerApi, nodes: Nodes) -> None:
        request = replica_pb2.CreateReplicaRequest(
            vm_uuid=UUID.format(1),
            vm_name="a",
            disks=[types_pb2.Disk(target="vda", size_bytes=512)],
            primary_access_point="p.example.org:7443",
        )
        call = caller(*SENDER)
        call.request_id = UUID.format(77)
        first = await service(api, "Replica").create_replica(call, request)
        again = await service(api, "Replica").create_replica(call, request)
        assert first.changed and again == first
        thief = caller("x.other.org")
        thief.request_id = call.request_id
        refused = await refusal(service(api, "Replica").create_replica(thief, request))
        assert refused.reason is Reason.NOT_AUTHORIZED
        assert "access.denied" in broker.events.names

    start(story)


def test_update_merges_the_policy_and_delete_needs_an_administrator() -> None:
    async def story(world: World, broker: Broker, api: BrokerApi, nodes: Nodes) -> None:
        made = await world.admit(broker, 1, "a")
        replica = service(api, "Replica")
        request = replica_pb2.UpdateReplicaRequest(
            replica_id=made.replica_id, policy=types_pb2.Policy(frequency_ms=30_000)
        )
        answer = await replica.update_replica(caller(*SENDER), request)
        assert answer.changed and answer.replica.policy.frequency_ms == 30_000
        assert not (await replica.update_replica(caller(*SENDER), request)).changed
        for reader in (caller(role=RoleKind.VIEWER), caller(role=RoleKind.NODE)):
            refused = await refusal(replica.update_replica(reader, request))
            assert refused.reason is Reason.ROLE_REQUIRED
        # As a primary's link tells it: what is fixed at creation is never asked for.
        told = PolicyRecord(frequency_ms=45_000, route="relay", disks=("vda",), folder="own")
        await GrpcReplicaLink(Direct(replica)).update_replica("cap:1", made.replica_id, told)
        after = parse(Record, world.server.state.live[KEYS.replica(made.replica_id)].value)
        assert (after.policy.frequency_ms, after.policy.route) == (45_000, "relay")
        assert (after.policy.disks, after.policy.folder) == ((), "")
        request.policy.frequency_ms = 10
        assert (await refusal(replica.update_replica(admin(), request))).reason is Reason.BAD_FIELD
        request = replica_pb2.UpdateReplicaRequest(
            replica_id="a", policy=types_pb2.Policy(folder="elsewhere")
        )
        assert (await refusal(replica.update_replica(admin(), request))).field == "folder"
        delete = replica_pb2.DeleteReplicaRequest(replica_id="a", delete_data=True)
        refused = await refusal(replica.delete_replica(caller(*SENDER), delete))
        assert refused.reason is Reason.ROLE_REQUIRED
        answer = await replica.delete_replica(admin(), delete)
        assert answer.operation_id == f"remove-{made.replica_id}"

    start(story)


def test_a_test_failover_is_stopped_where_it_runs() -> None:
    async def story(world: World, broker: Broker, api: BrokerApi, nodes: Nodes) -> None:
        made = await world.admit(broker, 1, "a")
        owner = world.owner(made.replica_id).node
        other = "n2" if owner == "n1" else "n1"
        started = failover_pb2.StartTestFailoverResponse(operation_id="o1", node=owner)
        nodes.answers[owner, "StartTestFailover"] = started
        failover = service(api, "Failover")
        request = failover_pb2.StartTestFailoverRequest(vm="a", networks={"net0": "none"})
        assert await failover.start_test_failover(admin(), request) == started
        assert nodes.calls[-1][2].vm == made.replica_id
        assert dict(nodes.calls[-1][2].networks) == {"net0": "none"}
        kv = world.server.state.live[KEYS.replica(made.replica_id)]
        test = records.TestFailoverRecord(running=True, node=other, domain_name="a - Test", seq=3)
        running = replace(parse(Record, kv.value), test_failover=test)
        await world.root.transaction([], [Put(kv.key, render(running))])
        await world.until(lambda: list(broker.services.inventory.index.tested()))
        stopped = failover_pb2.StopTestFailoverResponse(operation_id="o2")
        nodes.answers[other, "StopTestFailover"] = stopped
        stop = failover_pb2.StopTestFailoverRequest(vm="a")
        assert await failover.stop_test_failover(admin(), stop) == stopped
        listed = await failover.list_test_failovers(
            admin(), failover_pb2.ListTestFailoversRequest()
        )
        assert [(i.vm_name, i.running, i.node) for i in listed.items] == [("a", True, other)]
        delete = replica_pb2.DeleteReplicaRequest(replica_id="a")
        refused = await refusal(service(api, "Replica").delete_replica(admin(), delete))
        assert refused.reason is Reason.STATE_REFUSES

    start(story)


def test_nodes_brokers_checks_and_relayed_locations() -> None:
    async def story(world: World, broker: Broker, api: BrokerApi, nodes: Nodes) -> None:
        made = await world.admit(broker, 1, "a")
        node = service(api, "Node")
        await world.until(lambda: broker.services.inventory.is_registered("n1"))
        world.kill_node("n1")
        await world.until(lambda: len(broker.services.inventory.live_nodes()) == 1)
        shown = (await node.list_nodes(admin(), node_pb2.ListNodesRequest())).items
        assert [(n.name, n.state) for n in shown] == [("n1", "Lost"), ("n2", "Ready")]
        brokers = (await node.list_brokers(admin(), node_pb2.ListBrokersRequest())).items
        assert [(b.name, b.leader, b.state) for b in brokers] == [("b1", True, "Leader")]
        unknown = node_pb2.DrainNodeRequest(node="n9")
        assert (await refusal(node.drain_node(admin(), unknown))).reason is Reason.UNKNOWN_NODE
        await world.until(lambda: world.owner(made.replica_id).node == "n2", 3)
        await world.until(
            lambda: broker.services.inventory.owner(made.replica_id).record.node == "n2"
        )
        locate = location_pb2.LocateRequest(replica_id=made.replica_id, relay=True)
        found = await service(api, "Location").locate(caller(*SENDER), locate)
        assert (found.address, found.route, found.epoch) == ("r.example.org:7443", "relay", 2)
        nameless = await refusal(service(api, "Location").locate(caller(), locate))
        assert nameless.reason is Reason.NO_IDENTITY
        empty = location_pb2.LocateRequest()
        refused = await refusal(service(api, "Location").locate(caller(*SENDER), empty))
        assert refused.field == "replica_id"
        check = store_pb2.CheckStoreRequest(path="/elsewhere")
        assert "/s" in (await refusal(service(api, "Store").check_store(admin(), check))).remedy
        rows = await service(api, "Connection").test_connection(
            admin(), connection_pb2.TestConnectionRequest(to="o.org:7443", each_node=True)
        )
        assert [(r.target, r.ok) for r in rows.checks] == [("n2", False)]

    start(story)
