"""All API objects of a broker, by the full name of their service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from broker.api.access import Access
from broker.api.event_service import EventService, Own
from broker.api.failover_service import FailoverService
from broker.api.forward import LeaderWrites
from broker.api.location_service import LocationService
from broker.api.node_service import NodeService
from broker.api.nodes import Nodes
from broker.api.operation_service import OperationService
from broker.api.relay import METHODS, Pump, Relay
from broker.api.replica_service import ReplicaService
from broker.api.replication_service import ReplicationService
from broker.api.settings_api import SettingsApi
from broker.api.small_services import ConnectionService, StoreService, VersionService
from broker.service.composition import BrokerServices
from vmreplica.wire.call import Call
from vmreplica.wire.node_caller import NodeCaller, RawStream


@dataclass(frozen=True, slots=True)
class BrokerApi:
    """``services``: for GrpcServer.add. ``raw``: for GrpcServer.add_raw_stream, by method."""

    services: dict[str, object]
    raw: dict[str, Callable[[Call, RawStream], Awaitable[None]]]


def api_objects(
    services: BrokerServices,
    caller: NodeCaller,
    *,
    own_events: Own,
    server: str,
    git_commit: str = "",
    pump: Pump | None = None,
) -> BrokerApi:
    """Build them.

    :param own_events: this process's events as messages, for one request.
    :param pump: of the relay; None = none is mounted (a standalone node serves cycles itself).
    """
    access = Access(services.context)
    nodes = Nodes(services, caller)
    writes = LeaderWrites(services, caller)
    package = "vmreplica.v1."
    objects: dict[str, object] = {
        package + "LocationService": LocationService(access, services.locator),
        package + "ReplicaService": ReplicaService(services, access, nodes, writes),
        package + "ReplicationService": ReplicationService(services, access, nodes),
        package + "FailoverService": FailoverService(services, access, nodes),
        package + "NodeService": NodeService(services, access, writes),
        package + "SettingsService": SettingsApi(services, access, writes),
        package + "OperationService": OperationService(services, access),
        package + "EventService": EventService(services, access, nodes, own_events),
        package + "ConnectionService": ConnectionService(services, access, nodes),
        package + "StoreService": StoreService(services, access, nodes),
        package + "VersionService": VersionService(services, server=server, git_commit=git_commit),
    }
    raw = {}
    if pump is not None:
        relay = Relay(services, access, caller, pump)
        raw = {method: relay.handler(method) for method in METHODS}
    return BrokerApi(objects, raw)
