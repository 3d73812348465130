"""The broker's services put together on ports alone: the same in a daemon, on a standalone node
and in simulation.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from broker.service.address import AddressKeeper, NoAddress
from broker.service.admission import Admission
from broker.service.context import Context
from broker.service.drain import Drain
from broker.service.election import Election
from broker.service.inventory import Inventory
from broker.service.locator import Locator
from broker.service.policy_service import PolicyService
from broker.service.registrar import Registrar
from broker.service.relocator import Relocator
from broker.service.remover import Remover
from broker.service.settings_service import SettingsService
from vmreplica.coordination.guarded import GuardedWriter
from vmreplica.coordination.lease_keeper import LeaseKeeper
from vmreplica.coordination.operations import Operations
from vmreplica.coordination.request_log import RequestLog
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.core.keys import Keys
from vmreplica.core.lease_timing import BROKER_LEASE, NODE_LEASE, LeaseTiming
from vmreplica.core.records import BrokerRecord
from vmreplica.ports.address_holder import AddressHolder
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import ClusterStore
from vmreplica.ports.event_log import EventLog
from vmreplica.ports.randomness import Randomness


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerServices:
    """Everything of one broker. ``run`` keeps it going, ``stop`` hands over cleanly."""

    context: Context
    cache: StoreCache | None
    inventory: Inventory
    election: Election
    address: AddressKeeper
    admission: Admission
    locator: Locator
    relocator: Relocator
    registrar: Registrar
    drain: Drain
    remover: Remover
    policy: PolicyService
    settings: SettingsService
    operations: Operations
    requests: RequestLog

    async def run(self) -> None:
        """All loops, until cancelled. Follows the cache too, if it was made here."""
        async with asyncio.TaskGroup() as group:
            if self.cache is not None:
                group.create_task(self.cache.run())
            for service in (
                self.election,
                self.address,
                self.relocator,
                self.registrar,
                self.drain,
                self.remover,
            ):
                group.create_task(service.run())

    async def stop(self) -> None:
        """Clean stop: the address first, then the lease, so that the next one leads at once."""
        await self.address.release()
        await self.election.resign()

    def can_answer(self) -> bool:
        """Whether reads can be answered (the health of `vmreplica.broker`)."""
        age_ms = self.inventory.cache.heard_age_ms()
        return age_ms <= 3 * self.context.locate_max_age_ms


def build_services(
    *,
    store: ClusterStore,
    clock: Clock,
    randomness: Randomness,
    keys: Keys,
    events: EventLog,
    record: BrokerRecord,
    client_access_point: str,
    address_holder: AddressHolder | None = None,
    cache: StoreCache | None = None,
    writer: GuardedWriter | None = None,
    standalone: bool = False,
    lease: LeaseTiming = BROKER_LEASE,
    node_ttl_ms: int = NODE_LEASE.ttl_ms,
) -> BrokerServices:
    """Build them all; nothing runs yet.

    :param cache: a StoreCache over ``keys.root`` that somebody else runs (standalone node);
        None = an own one is made and run.
    """
    own_cache = StoreCache(store, clock, keys.root) if cache is None else None
    used_cache = cache or own_cache
    assert used_cache is not None
    inventory = Inventory(used_cache, keys)
    election = Election(
        store=store,
        clock=clock,
        keys=keys,
        record=record,
        cache=used_cache,
        new_lease=lambda: LeaseKeeper.with_timing(store, clock, lease),
        events=events,
    )
    context = Context(
        store=store,
        clock=clock,
        randomness=randomness,
        keys=keys,
        writer=writer or GuardedWriter(store, clock, randomness, keys),
        inventory=inventory,
        election=election,
        events=events,
        version=record.version,
        client_access_point=client_access_point,
        standalone=standalone,
        locate_max_age_ms=lease.ttl_ms,
    )
    operations = Operations(store, clock, randomness, keys)
    return BrokerServices(
        context=context,
        cache=own_cache,
        inventory=inventory,
        election=election,
        address=AddressKeeper(address_holder or NoAddress(), election),
        admission=Admission(context),
        locator=Locator(context),
        relocator=Relocator(context, node_ttl_ms=node_ttl_ms),
        registrar=Registrar(context),
        drain=Drain(context, operations),
        remover=Remover(context, operations),
        policy=PolicyService(context),
        settings=SettingsService(context),
        operations=operations,
        requests=RequestLog(store, clock, keys),
    )
