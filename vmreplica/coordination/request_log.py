"""Answers to writes, kept under their request id: a repeated request is answered, not redone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from vmreplica.coordination.shared_lease import SharedLease
from vmreplica.core.keys import Keys
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import ClusterStore, Get, Put, StoreError, absent

ANSWER_KEPT_MS = 24 * 3_600_000


class RequestLog:
    """Request id -> recorded answer (text), for 24 h.

    In one process, duplicates that come while the first is at work wait for its answer, and the
    work goes on when the one who asked is cancelled (a client that went away). Between
    processes (the leader changed meanwhile) the first recorded answer is everybody's answer; an
    act that must happen once writes with an op id derived from the request id (GuardedWriter).
    Failures are not recorded: a repeat tries again.
    """

    def __init__(self, store: ClusterStore, clock: Clock, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        self._kept = SharedLease(store, clock, keep_ms=ANSWER_KEPT_MS)
        self._at_work: dict[str, asyncio.Task[str]] = {}

    async def once(self, request_id: str, act: Callable[[], Awaitable[str]]) -> str:
        """The recorded answer, else that of ``act``, which is then recorded.

        :param request_id: "" = nothing is looked up or recorded.
        :raises StoreUnavailable: it could not be looked up: nothing was done.
        """
        if not request_id:
            return await act()
        work = self._at_work.get(request_id)
        if work is None:
            work = asyncio.create_task(self._answer(request_id, act))
            self._at_work[request_id] = work
            work.add_done_callback(lambda done: self._ended(request_id, done))
        # Whoever asked first may go away: the others still wait, and the work is not cut in two.
        return await asyncio.shield(work)

    def _ended(self, request_id: str, work: asyncio.Task[str]) -> None:
        del self._at_work[request_id]
        if not work.cancelled():
            work.exception()  # nobody may be waiting any more: that is no bug

    async def close(self) -> None:
        """Cancel what is still at work."""
        works = list(self._at_work.values())
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    async def _answer(self, request_id: str, act: Callable[[], Awaitable[str]]) -> str:
        recorded = await self.recorded(request_id)
        if recorded is not None:
            return recorded
        answer = await act()
        return await self._record(request_id, answer)

    async def recorded(self, request_id: str) -> str | None:
        """The answer given before, if any. :raises StoreUnavailable:"""
        kv = await self._store.get(self._keys.request(request_id))
        return None if kv is None else kv.value

    async def _record(self, request_id: str, answer: str) -> str:
        key = self._keys.request(request_id)
        try:
            lease_id = await self._kept.lease_id()
            result = await self._store.transaction(
                [absent(key)], [Put(key, answer, lease_id)], [Get(key)]
            )
        except StoreError:
            # The act is done. A repeat would do it again, which its op id makes harmless.
            return answer
        if result.succeeded:
            return answer
        (earlier,) = result.reads
        return answer if earlier is None else earlier.value
