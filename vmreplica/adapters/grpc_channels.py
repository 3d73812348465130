"""Client side of gRPC: channels by (address, expected server name), calls whose failures are
Problems, connections renewed when they are in doubt or our certificate has changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc._cython import cygrpc

from vmreplica.adapters import tls
from vmreplica.adapters.grpc_options import channel_options
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.clock import Clock
from vmreplica.wire.call import TRAILERS
from vmreplica.wire.problem_status import DETAILS_KEY, from_status, problem_from_details

_log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
Metadata = Iterable[tuple[str, str | bytes]]

DEFAULT_TIMEOUT_MS = 10_000
_LOOK_EVERY_MS = 1_000
_OLD_CHANNEL_GRACE_S = 3_600.0
"""Streams on a channel that was replaced may end by themselves within this time."""
_IN_DOUBT = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


@dataclass(slots=True)
class _Entry:
    channel: Any
    signature: object


class ChannelPool:
    """All connections of a process to others.

    :param files: our key, certificate and the CA to trust; None = only ``unix:`` addresses.
    """

    def __init__(self, files: tls.TlsFiles | None, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._material: tls.TlsMaterial | None = None
        self._looked_ms = -_LOOK_EVERY_MS
        self._failed_signature: object = None
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self, address: str, server_name: str = "") -> Any:
        """A channel to HOST:PORT (or ``unix:PATH``).

        :param server_name: DNS name that the certificate must show; "" = the host of ``address``.
        :raises Problem: CERTIFICATE_INVALID where our own files are unusable.
        """
        key = (address, server_name)
        if address.startswith("unix:"):
            entry = self._entries.get(key)
            if entry is None:
                channel = grpc.aio.insecure_channel(address, options=channel_options(""))
                entry = self._entries[key] = _Entry(channel, None)
            return entry.channel
        material = self.material()
        entry = self._entries.get(key)
        if entry is not None and entry.signature != material.signature:
            self.forget(address, server_name)
            entry = None
        if entry is None:
            channel = _secure_channel(address, server_name, material)
            entry = self._entries[key] = _Entry(channel, material.signature)
        return entry.channel

    def unshared_channel(self, address: str, server_name: str = "") -> Any:
        """A channel with a connection of its own, which the caller closes.

        :raises Problem: CERTIFICATE_INVALID where our own files are unusable.
        """
        return _secure_channel(address, server_name, self.material())

    def material(self) -> tls.TlsMaterial:
        """Our own key and certificate, as the files are now.

        :raises Problem: CERTIFICATE_INVALID; later bad changes are logged and not used.
        """
        if self._files is None:
            raise Problem(
                Reason.CERTIFICATE_INVALID,
                "There is no client certificate to connect with.",
                field="tls",
                remedy="Set certificate, key and ca.",
            )
        now_ms = self._clock.boottime_ms()
        if self._material is not None and now_ms - self._looked_ms < _LOOK_EVERY_MS:
            return self._material
        self._looked_ms = now_ms
        signature = self._files.signature()
        if self._material is not None and signature in (
            self._material.signature,
            self._failed_signature,
        ):
            return self._material
        try:
            self._material = tls.load(self._files, self._clock.wall_ms())
        except Problem as problem:
            if self._material is None:
                raise
            self._failed_signature = signature
            _log.warning("the changed TLS files are not used: %s", problem.message)
        return self._material

    def forget(self, address: str, server_name: str = "") -> None:
        """The next call opens a new connection; streams on the old one may go on."""
        entry = self._entries.pop((address, server_name), None)
        if entry is not None:
            task = asyncio.get_running_loop().create_task(entry.channel.close(_OLD_CHANNEL_GRACE_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def unary(
        self,
        address: str,
        server_name: str,
        method: str,
        request: Message,
        response_type: type[M],
        *,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        metadata: Metadata = (),
        trailers: MutableMapping[str, str] | None = None,
    ) -> M:
        """One answer. ``trailers`` receives the vmreplica-… trailers of the answer.

        :raises Problem: as the server answered; NODE_UNREACHABLE, CERTIFICATE_INVALID.
        """
        channel = self.channel(address, server_name)
        call = channel.unary_unary(method)(
            request.SerializeToString(), timeout=timeout_ms / 1000, metadata=tuple(metadata)
        )
        try:
            raw: bytes = await call
        except grpc.aio.AioRpcError as error:
            if error.code().name in _IN_DOUBT and details_of(error) is None:
                # The address may have moved to another host while this connection still hangs.
                self.forget(address, server_name)
            raise problem_of_rpc(error, address) from error
        if trailers is not None:
            trailers.update(known_trailers(await call.trailing_metadata()))
        return parse_answer(response_type, raw)

    async def stream(
        self,
        address: str,
        server_name: str,
        method: str,
        request: Message,
        response_type: type[M],
        *,
        timeout_ms: int | None = None,
        metadata: Metadata = (),
        trailers: MutableMapping[str, str] | None = None,
    ) -> AsyncIterator[M]:
        """Many answers to one request. :raises Problem: as ``unary``"""
        channel = self.channel(address, server_name)
        timeout = None if timeout_ms is None else timeout_ms / 1000
        call = channel.unary_stream(method)(
            request.SerializeToString(), timeout=timeout, metadata=tuple(metadata)
        )
        try:
            async for raw in call:
                yield parse_answer(response_type, raw)
            if trailers is not None:
                trailers.update(known_trailers(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            raise problem_of_rpc(error, address) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close all connections, cancelling what runs on them."""
        entries, self._entries = list(self._entries.values()), {}
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for entry in entries:
            await entry.channel.close()


def _secure_channel(address: str, server_name: str, material: tls.TlsMaterial) -> Any:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=material.ca_pem,
        private_key=material.key_pem,
        certificate_chain=material.certificate_pem,
    )
    name = server_name or address.rpartition(":")[0].strip("[]")
    return grpc.aio.secure_channel(address, credentials, options=channel_options(name))


def parse_answer(kind: type[M], raw: bytes) -> M:
    """:raises Problem: INTERNAL where the server's answer is not such a message."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise Problem(
            Reason.INTERNAL, f"The answer is not a {kind.DESCRIPTOR.full_name}."
        ) from error


def known_trailers(metadata: Metadata | None) -> dict[str, str]:
    """Our own trailers among a call's."""
    return {
        name: value for name, value in metadata or () if name in TRAILERS and isinstance(value, str)
    }


def details_of(error: grpc.aio.AioRpcError) -> Problem | None:
    """The problem that one of us sent; None where something else ended the call."""
    trailing: Any = error.trailing_metadata()
    for name, value in trailing or ():
        if name == DETAILS_KEY and isinstance(value, bytes):
            return problem_from_details(value)
    return None


async def write_raw(call: Any, message: bytes) -> None:
    """Send one message on a stream; waits while the transport is full.

    grpc.aio's own ``write`` replaces the status of a call that the server has just ended by an
    internal error of its own, and the server's words are lost. So the layer below is asked, and
    the true status is waited for.

    :raises grpc.aio.AioRpcError: the call has ended, perhaps with OK.
    """
    await call.wait_for_connection()
    try:
        await call._cython_call.send_serialized_message(message)  # noqa: SLF001 - see above
    except cygrpc.InternalError as error:
        raise await error_of(call) from error
    except asyncio.CancelledError:
        call.cancel()
        raise


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    """The status of a stream that has ended, as the exception that unary calls raise."""
    return grpc.aio.AioRpcError(
        await call.code(),
        grpc.aio.Metadata(),
        await call.trailing_metadata(),
        details=await call.details(),
        debug_error_string=None,
    )


def problem_of_rpc(error: grpc.aio.AioRpcError, address: str) -> Problem:
    """Any failed call as a Problem; where the transport failed the address is named."""
    ours = details_of(error)
    if ours is not None:
        return ours
    problem = from_status(error.code().name, error.details() or "")
    problem.message = f"{address}: {problem.message}"
    problem.value = problem.value or address
    return problem
