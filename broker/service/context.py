"""What all services of the broker share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from broker.service.election import Election
from broker.service.inventory import Inventory
from vmreplica.core.keys import Keys
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import (
    ClusterStore,
    Compare,
    Delete,
    KeyValue,
    Operation,
    Put,
    StoreError,
    TransactionResult,
)
from vmreplica.ports.event_log import EventLog
from vmreplica.ports.randomness import Randomness


class Writer(Protocol):
    """What the broker needs of coordination.GuardedWriter."""

    async def write(
        self, compares: Sequence[Compare], operations: Sequence[Operation], *, op_id: str = ""
    ) -> TransactionResult:
        """A transaction whose outcome is known in the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Built once by composition.

    :ivar client_access_point: HOST:PORT by which other clusters know this one.
    :ivar standalone: one node is the whole cluster; storage need not be shared.
    """

    store: ClusterStore
    clock: Clock
    randomness: Randomness
    keys: Keys
    writer: Writer
    inventory: Inventory
    election: Election
    events: EventLog
    version: str
    client_access_point: str
    standalone: bool = False
    locate_max_age_ms: int = 4_000

    async def write(
        self, compares: Sequence[Compare], operations: Sequence[Operation], *, op_id: str = ""
    ) -> TransactionResult:
        """A guarded write that the cache knows of at once.

        :raises StoreUnavailable, OutcomeUnknown, StoreRefused:
        """
        result = await self.writer.write(compares, operations, op_id=op_id)
        if result.succeeded:
            for operation in operations:
                self._note(operation, result.revision)
        return result

    def _note(self, operation: Operation, revision: int) -> None:
        cache = self.inventory.cache
        match operation:
            case Put(key, value, lease_id):
                old = cache.get(key)
                cache.note(
                    KeyValue(
                        key,
                        value,
                        old.create_revision if old else revision,
                        revision,
                        old.version + 1 if old else 1,
                        lease_id,
                    )
                )
            case Delete(key):
                cache.forget(key, revision)
            case _:
                pass

    async def cache_catches_up(self, timeout_ms: int = 2_000) -> None:
        """Wait until the cache has heard all that is committed now; gives up silently."""
        try:
            now = await self.store.range(self.keys.elections, limit=1)
        except StoreError:
            return
        give_up_ms = self.clock.boottime_ms() + timeout_ms
        cache = self.inventory.cache
        while cache.revision < now.revision and self.clock.boottime_ms() < give_up_ms:
            await self.clock.sleep(10)
