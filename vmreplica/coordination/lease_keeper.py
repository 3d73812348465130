"""Keeping one lease alive, and knowing until when its holder may act."""

from __future__ import annotations

import logging
from collections.abc import Callable

from vmreplica.core.lease_timing import LeaseTiming, check_lease_timing, deadline_ms
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import ClusterStore, Lease, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

RETRY_PAUSE_MS = 200


class LeaseKeeper:
    """One lease of this process.

    The deadline counts from the moment the last *answered* keepalive was sent, with the TTL that
    was granted. It never moves back while the lease lives and falls to 0 when the lease is gone.
    Past it the holder pauses; it goes on by itself when the same lease is answered again.

    :param ttl_ms: asked for; the rest is as in core.lease_timing.LeaseTiming.
    :raises Problem: BAD_CONFIG when one lost keepalive would end the lease.
    """

    def __init__(
        self,
        store: ClusterStore,
        clock: Clock,
        *,
        ttl_ms: int,
        keepalive_ms: int,
        try_ms: int,
        margin_ms: int,
    ) -> None:
        check_lease_timing(LeaseTiming(ttl_ms, keepalive_ms, try_ms, margin_ms))
        self._store = store
        self._clock = clock
        self._asked_ttl_ms = ttl_ms
        self._keepalive_ms = keepalive_ms
        self._try_ms = try_ms
        self._margin_ms = margin_ms
        self._deadline_ms = 0
        self._answered_sent_ms = 0
        self.lease_id = 0
        self.ttl_ms = 0
        self.gone = False
        self.on_deadline: list[Callable[[int], None]] = []

    @classmethod
    def with_timing(cls, store: ClusterStore, clock: Clock, timing: LeaseTiming) -> LeaseKeeper:
        """A keeper from configuration."""
        return cls(
            store,
            clock,
            ttl_ms=timing.ttl_ms,
            keepalive_ms=timing.keepalive_ms,
            try_ms=timing.try_ms,
            margin_ms=timing.margin_ms,
        )

    async def acquire(self) -> Lease:
        """Grant a new lease; the first deadline counts from the sending of the request.

        May be called again after the lease is gone: that is a new life with a new id.

        :raises StoreUnavailable: nothing was granted that anybody knows of.
        """
        sent_ms = self._clock.boottime_ms()
        lease = await self._store.grant(self._asked_ttl_ms)
        self.lease_id = lease.lease_id
        self.ttl_ms = lease.ttl_ms
        self.gone = False
        self._deadline_ms = 0
        self._answered(sent_ms, lease.ttl_ms)
        return lease

    async def run(self) -> None:
        """Send keepalives until the lease is gone, then return. Outages do not end it."""
        if not self.lease_id:
            raise RuntimeError("acquire() comes before run()")
        while not self.gone:
            await self._clock.sleep(self._keepalive_ms)
            await self._keep()

    async def _keep(self) -> None:
        """One refresh: tries until it is answered."""
        failures = 0
        could_act = True
        while not self.gone:
            sent_ms = self._clock.boottime_ms()
            try:
                ttl_ms = await self._store.keepalive(self.lease_id, self._try_ms)
            except StoreUnavailable as error:
                failures += 1
                if could_act and not self.may_act():
                    could_act = False
                    log.warning("lease %016x: past its deadline: %s", self.lease_id, error)
                used_ms = self._clock.boottime_ms() - sent_ms
                # A refusal that comes at once must not turn into a busy loop.
                if used_ms < RETRY_PAUSE_MS:
                    await self._clock.sleep(RETRY_PAUSE_MS - used_ms)
                continue
            if ttl_ms <= 0:
                self._lost()
                return
            self._answered(sent_ms, ttl_ms)
            if not could_act:
                log.warning("lease %016x: answered after %d failures", self.lease_id, failures)
            return

    def _answered(self, sent_ms: int, ttl_ms: int) -> None:
        if self.gone:
            return  # Given back while this keepalive was under way: nobody may act by it.
        self.ttl_ms = ttl_ms
        self._answered_sent_ms = sent_ms
        deadline = deadline_ms(sent_ms, ttl_ms, self._margin_ms)
        if deadline > self._deadline_ms:
            self._set_deadline(deadline)

    def _lost(self) -> None:
        log.warning("lease %016x is gone", self.lease_id)
        self.gone = True
        self._set_deadline(0)

    def _set_deadline(self, deadline: int) -> None:
        self._deadline_ms = deadline
        for callback in list(self.on_deadline):
            callback(deadline)

    def deadline_boottime_ms(self) -> int:
        """The holder may act before this moment; 0 before acquire and once the lease is gone."""
        return self._deadline_ms

    def may_act(self) -> bool:
        """Whether the lease certainly still stands, by this host's clock, read now."""
        return self._clock.boottime_ms() < self._deadline_ms

    def heard_age_ms(self) -> int:
        """Time since the last answered keepalive was sent; -1 before acquire."""
        if not self.lease_id:
            return -1
        return self._clock.boottime_ms() - self._answered_sent_ms

    async def release(self) -> None:
        """A clean stop: may not act any more, from before the lease is revoked."""
        if not self.lease_id or self.gone:
            return
        self.gone = True
        self._set_deadline(0)
        try:
            await self._store.revoke(self.lease_id)
        except StoreError as error:
            # It runs out by itself.
            log.warning("lease %016x: not revoked: %s", self.lease_id, error)
