"""Connections to etcd's members: which one is asked, and what a failure means."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from vmreplica.adapters.etcd_errors import Verdict, as_error, classify
from vmreplica.adapters.etcd_settings import EtcdSettings, read_credentials
from vmreplica.core.problems import Problem
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import Compacted, OutcomeUnknown, StoreUnavailable
from vmreplica.ports.randomness import Randomness

log = logging.getLogger(__name__)
T = TypeVar("T")

# A member without a leader refuses at once instead of letting the call hang.
METADATA = (("hasleader", "true"),)
OPTIONS = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * 1024 * 1024),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_ROUND_PAUSE_MS = 100
_READ_TRIES = 3


@dataclass(frozen=True, slots=True)
class Member:
    """One endpoint with its open channel."""

    endpoint: str
    channel: grpc.aio.Channel


class EtcdChannels:
    """One channel for each endpoint; calls go to the one that answered last.

    A call is sent only over a connection that stands: what fails before that was certainly not
    applied, whatever the error says; what fails after it is judged by etcd_errors.

    :raises Problem: BAD_CONFIG when the credentials cannot be read.
    """

    def __init__(self, settings: EtcdSettings, clock: Clock, randomness: Randomness) -> None:
        self._settings = settings
        self._clock = clock
        self._credentials = read_credentials(settings)
        self._credentials_problem = ""
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._retired: list[grpc.aio.Channel] = []
        # Members share the load: each client begins somewhere else.
        self._first = int(randomness.uniform(0, len(settings.endpoints)))
        self.closed = False

    @property
    def endpoint(self) -> str:
        """The endpoint that is asked next."""
        return self._settings.endpoints[self._first]

    def avoid(self, endpoint: str) -> None:
        """This one failed: begin with the next. Only the first of many failing calls turns."""
        if self.endpoint == endpoint:
            self._first = (self._first + 1) % len(self._settings.endpoints)

    async def connected(self, timeout_ms: float) -> Member:
        """A member with a connection that stands. :raises StoreUnavailable: none in time."""
        give_up_at_ms = self._clock.boottime_ms() + timeout_ms
        while True:
            for _ in self._settings.endpoints:
                endpoint = self.endpoint
                left_ms = give_up_at_ms - self._clock.boottime_ms()
                wait_ms = min(self._settings.connect_timeout_ms, max(left_ms, 1))
                channel = self._channel(endpoint)
                if await _is_ready(channel, wait_ms / 1000):
                    return Member(endpoint, channel)
                self.avoid(endpoint)
            await self._renew_credentials()
            if self._clock.boottime_ms() + _ROUND_PAUSE_MS >= give_up_at_ms:
                names = ", ".join(self._settings.endpoints)
                raise StoreUnavailable(f"no etcd member can be reached: {names}")
            await self._clock.sleep(_ROUND_PAUSE_MS)

    async def read(self, call: Callable[[grpc.aio.Channel, float], Awaitable[T]]) -> T:
        """A call without effect: tried on one member after the other until the deadline.

        :param call: gets the channel and the try's time limit in seconds.
        :raises StoreUnavailable, StoreRefused, Compacted:
        """
        total_ms = self._settings.call_timeout_ms
        give_up_at_ms = self._clock.boottime_ms() + total_ms
        while True:
            member = await self.connected(give_up_at_ms - self._clock.boottime_ms())
            left_ms = give_up_at_ms - self._clock.boottime_ms()
            try_ms = max(1.0, min(left_ms, total_ms / _READ_TRIES))
            try:
                return await self._guarded(call(member.channel, try_ms / 1000))
            except grpc.aio.AioRpcError as error:
                verdict = classify(error.code(), error.details() or "")
                self.avoid(member.endpoint)
                over = self._clock.boottime_ms() >= give_up_at_ms
                if over or verdict not in {Verdict.NOT_APPLIED, Verdict.UNKNOWN}:
                    _raise_for(member, error, Verdict.NOT_APPLIED if over else verdict)
                await self._clock.sleep(min(_ROUND_PAUSE_MS, left_ms))

    async def write(self, call: Callable[[grpc.aio.Channel, float], Awaitable[T]]) -> T:
        """A call with an effect: sent a second time only if the first certainly did nothing.

        :raises StoreUnavailable, OutcomeUnknown, StoreRefused:
        """
        give_up_at_ms = self._clock.boottime_ms() + self._settings.call_timeout_ms
        while True:
            member = await self.connected(give_up_at_ms - self._clock.boottime_ms())
            left_ms = max(1, give_up_at_ms - self._clock.boottime_ms())
            try:
                return await self._guarded(call(member.channel, left_ms / 1000))
            except grpc.aio.AioRpcError as error:
                verdict = classify(error.code(), error.details() or "")
                if verdict in {Verdict.NOT_APPLIED, Verdict.UNKNOWN}:
                    self.avoid(member.endpoint)
                over = self._clock.boottime_ms() + _ROUND_PAUSE_MS >= give_up_at_ms
                if over or verdict is not Verdict.NOT_APPLIED:
                    _raise_for(member, error, verdict)
                await self._clock.sleep(_ROUND_PAUSE_MS)

    async def once(
        self, timeout_ms: int, call: Callable[[grpc.aio.Channel, float], Awaitable[T]]
    ) -> T:
        """One try on one member, connecting included. :raises as write."""
        give_up_at_ms = self._clock.boottime_ms() + timeout_ms
        member = await self.connected(timeout_ms)
        left_ms = max(1, give_up_at_ms - self._clock.boottime_ms())
        try:
            return await self._guarded(call(member.channel, left_ms / 1000))
        except grpc.aio.AioRpcError as error:
            self.avoid(member.endpoint)
            _raise_for(member, error, classify(error.code(), error.details() or ""))

    async def close(self) -> None:
        """Close every channel; calls under way end with an error."""
        self.closed = True
        channels = [*self._channels.values(), *self._retired]
        self._channels.clear()
        self._retired.clear()
        for channel in channels:
            await channel.close(None)

    async def _guarded(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # grpc.aio reports a closed channel as if the waiting task had been cancelled.
            raise OutcomeUnknown("the connection to etcd was closed") from None

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        if self.closed:
            raise StoreUnavailable("the store is closed")
        channel = self._channels.get(endpoint)
        if channel is None:
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)
            else:
                channel = grpc.aio.secure_channel(
                    endpoint, self._credentials.channel_credentials(), options=OPTIONS
                )
            self._channels[endpoint] = channel
        return channel

    async def _renew_credentials(self) -> None:
        """No member could be reached: perhaps because our certificate was exchanged on disk."""
        try:
            renewed = await asyncio.to_thread(read_credentials, self._settings)
        except Problem as problem:
            if str(problem) != self._credentials_problem:
                log.warning("%s", problem)
            self._credentials_problem = str(problem)
            return
        self._credentials_problem = ""
        if renewed == self._credentials or self.closed:
            return
        log.info("the certificate for etcd has changed: connecting anew")
        self._credentials = renewed
        # Streams on the old channels go on until they end; close() cuts them.
        self._retired.extend(self._channels.values())
        self._channels.clear()


async def _is_ready(channel: grpc.aio.Channel, timeout_s: float) -> bool:
    """Whether the connection stands, waiting while it is being made."""
    state = channel.get_state(try_to_connect=True)
    try:
        async with asyncio.timeout(timeout_s):
            while state not in {
                grpc.ChannelConnectivity.READY,
                grpc.ChannelConnectivity.TRANSIENT_FAILURE,
                grpc.ChannelConnectivity.SHUTDOWN,
            }:
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        return False
    return state is grpc.ChannelConnectivity.READY


def _raise_for(member: Member, error: grpc.aio.AioRpcError, verdict: Verdict) -> NoReturn:
    text = f"etcd {member.endpoint}: {error.code().name}: {error.details()}"
    if verdict is Verdict.COMPACTED:
        # The error does not name the revision; the caller asks anew from the newest.
        raise Compacted(0) from error
    raise as_error(verdict, text) from error


def unary(stub: Any, request: Any) -> Callable[[grpc.aio.Channel, float], Awaitable[Any]]:
    """A unary call of a generated stub's method: ``unary(lambda c: KVStub(c).Range, request)``."""

    async def call(channel: grpc.aio.Channel, timeout_s: float) -> Any:
        return await stub(channel)(request, timeout=timeout_s, metadata=METADATA)

    return call
