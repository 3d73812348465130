"""Writes to the cluster store whose outcome is always known in the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vmreplica.coordination.shared_lease import SharedLease
from vmreplica.core.keys import Keys
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import (
    ClusterStore,
    Compare,
    Get,
    Operation,
    OutcomeUnknown,
    Put,
    StoreRefused,
    StoreUnavailable,
    TransactionResult,
    absent,
)
from vmreplica.ports.randomness import Randomness

log = logging.getLogger(__name__)

OP_KEPT_MS = 3_600_000
MAX_GUARDED_OPERATIONS = 127
MAX_GUARDED_COMPARES = 126
_RETRY_MS = (100.0, 400.0)


class GuardedWriter:
    """Transactions that leave ``ops/<op id>`` behind, for an hour: presence = applied.

    An unknown outcome is resolved by a second transaction: if the op key is absent it puts a
    *void* key that the first one is guarded by, so that a request still on its way can never be
    applied afterwards. Only then is "not applied" reported.

    An op id that was applied before is not applied again: its result is reported once more.

    :param resolve_ms: how long resolving may take before OutcomeUnknown is raised after all.
    """

    def __init__(
        self,
        store: ClusterStore,
        clock: Clock,
        randomness: Randomness,
        keys: Keys,
        *,
        resolve_ms: int = 10_000,
    ) -> None:
        self._store = store
        self._clock = clock
        self._randomness = randomness
        self._keys = keys
        self._resolve_ms = resolve_ms
        self._lease = SharedLease(store, clock, keep_ms=OP_KEPT_MS)

    async def write(
        self, compares: Sequence[Compare], operations: Sequence[Operation], *, op_id: str = ""
    ) -> TransactionResult:
        """Apply ``operations`` if all guards hold.

        ``succeeded`` is false when a guard failed: nothing was written. ``reads`` is empty when
        the outcome had to be resolved, or the op id had been applied before.

        :param op_id: chosen by the caller to recognise the write in records; "" = a fresh one.
        :raises StoreUnavailable: certainly not applied, now or later.
        :raises OutcomeUnknown: it could not be resolved in time.
        :raises StoreRefused: malformed; nothing applied.
        """
        if len(operations) > MAX_GUARDED_OPERATIONS or len(compares) > MAX_GUARDED_COMPARES:
            raise StoreRefused("too many operations in a guarded write")
        op_id = op_id or self._randomness.uuid()
        done_key = self._keys.op(op_id)
        void_key = f"{done_key}.void.{self._randomness.token(8).hex()}"
        guards = [*compares, absent(done_key), absent(void_key)]
        for last in (False, True):
            lease_id = await self._lease.lease_id()
            done = Put(done_key, "done", lease_id)
            try:
                result = await self._store.transaction(guards, [*operations, done], [Get(done_key)])
            except OutcomeUnknown:
                return await self._resolve(op_id, done_key, void_key)
            except StoreRefused:
                # Perhaps our own lease ran out while this process slept; else the caller's fault.
                if last or not await self._lease_unknown(lease_id):
                    raise
                self._lease.forget(lease_id)
                continue
            if result.succeeded:
                return result
            (applied,) = result.reads
            if applied is not None:
                return TransactionResult(True, applied.create_revision)
            return TransactionResult(False, result.revision)
        raise AssertionError("unreachable")

    async def _lease_unknown(self, lease_id: int) -> bool:
        return await self._store.keepalive(lease_id, 1_000) == 0

    async def _resolve(self, op_id: str, done_key: str, void_key: str) -> TransactionResult:
        give_up_at_ms = self._clock.boottime_ms() + self._resolve_ms
        log.info("op %s: outcome unknown, resolving", op_id)
        while True:
            try:
                lease_id = await self._lease.lease_id()
                # Repeating this is harmless: putting the void key again changes nothing.
                result = await self._store.transaction(
                    [absent(done_key)], [Put(void_key, "void", lease_id)], [Get(done_key)]
                )
            except (OutcomeUnknown, StoreUnavailable) as error:
                if self._clock.boottime_ms() >= give_up_at_ms:
                    raise OutcomeUnknown(f"op {op_id}: not resolved in time: {error}") from error
                await self._clock.sleep(self._randomness.uniform(*_RETRY_MS))
                continue
            except StoreRefused:
                self._lease.forget(lease_id)
                if self._clock.boottime_ms() >= give_up_at_ms:
                    raise OutcomeUnknown(f"op {op_id}: not resolved in time") from None
                await self._clock.sleep(self._randomness.uniform(*_RETRY_MS))
                continue
            if result.succeeded:
                raise StoreUnavailable(f"op {op_id}: not applied")
            (applied,) = result.reads
            assert applied is not None  # the guard said so in the same transaction
            return TransactionResult(True, applied.create_revision)
