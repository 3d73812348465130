"""Writes go to the leader: done here where this broker leads, else forwarded to it."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from broker.service.composition import BrokerServices
from broker.service.election import no_leader
from vmreplica.core.cycle import digest
from vmreplica.core.problems import Problem, Reason
from vmreplica.wire.call import Call
from vmreplica.wire.node_caller import NodeCaller, NodeTarget

M = TypeVar("M", bound=Message)
LEADER_WAIT_MS = 5_000
_AGAIN_MS = 100
_ELSEWHERE = (Reason.NO_LEADER, Reason.NODE_UNREACHABLE, Reason.LEASE_LOST)


class LeaderWrites:
    """Runs a write where the leader is; a repeated request id gets the first answer."""

    def __init__(self, services: BrokerServices, caller: NodeCaller) -> None:
        self._services = services
        self._caller = caller

    async def run(
        self,
        call: Call,
        method: str,
        request: Message,
        response_type: type[M],
        act: Callable[[], Awaitable[M]],
    ) -> M:
        """``act`` here, or the same call at the leader.

        :param method: ``/vmreplica.v1.ReplicaService/CreateReplica``
        :raises Problem: NO_LEADER where nobody leads for 5 s; else what the act raises.
        """
        services = self._services
        clock = services.context.clock
        give_up_ms = clock.boottime_ms() + LEADER_WAIT_MS
        while True:
            try:
                if services.election.may_act():
                    return await self._once(call, method, response_type, act)
                if not call.relayed_by:
                    # One hop at most: a forwarded call is answered or refused, never passed on.
                    return await self._at_leader(call, method, request, response_type)
                problem = no_leader()
            except Problem as refused:
                if refused.reason not in _ELSEWHERE:
                    raise
                problem = refused
            if clock.boottime_ms() >= give_up_ms:
                raise no_leader() from problem
            await clock.sleep(_AGAIN_MS)

    async def _at_leader(
        self, call: Call, method: str, request: Message, response_type: type[M]
    ) -> M:
        election = self._services.election
        leader = election.leader()
        if leader is None or election.is_me(leader):
            raise no_leader()
        target = NodeTarget(leader.name, leader.address, leader.server_name)
        return await self._caller.unary(
            target, method, request, response_type, call, timeout_ms=LEADER_WAIT_MS
        )

    async def _once(
        self,
        call: Call,
        method: str,
        response_type: type[M],
        act: Callable[[], Awaitable[M]],
    ) -> M:
        if not call.request_id:
            return await act()
        # The caller is part of the key: nobody else's repetition is answered with it.
        names = "\0".join((method, *sorted(call.identity.dns_names)))
        key = f"{call.request_id}.{digest(names.encode()).hex()[:12]}"

        async def text() -> str:
            answer = await act()
            return base64.b64encode(answer.SerializeToString()).decode()

        answer = response_type()
        answer.ParseFromString(base64.b64decode(await self._services.requests.once(key, text)))
        return answer
