"""The wire as one command sees it: unary calls, writes, streams; problems become failures.

Every call is repeated once when the transport was cut, or when the server does not know what
became of it; a write then bears the same request id, so that nothing is done twice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from vmrctl.contexts import Target
from vmrctl.errors import EXIT_USAGE, Failure, of_problem
from vmreplica.adapters.grpc_options import channel_options
from vmreplica.adapters.system_randomness import SystemRandomness
from vmreplica.core.problems import Problem, Reason
from vmreplica.wire.problem_status import DETAILS_KEY, foreign_problem, problem_from_details

M = TypeVar("M", bound=Message)

REQUEST_ID = "vmreplica-request-id"
DEFAULT_TIMEOUT_S = 30.0
RETRY_WAIT_S = 6.0
"""How long the repetition waits for a connection: a leader's lease, and the next one's start."""
RETRY_PAUSE_S = 0.5
_NO_SUCH_NAME = ("dns resolution failed", "errors resolving", "lookup failed")


class Client:
    """Calls to one endpoint.

    :param retry_wait_s: how long the one repetition waits for a connection; 0 = no repetition,
        None = ``RETRY_WAIT_S``.
    """

    def __init__(
        self,
        target: Target,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_wait_s: float | None = None,
        new_request_id: Callable[[], str] | None = None,
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._retry_wait_s = RETRY_WAIT_S if retry_wait_s is None else retry_wait_s
        self._new_request_id = new_request_id or SystemRandomness().uuid
        self._channel = _channel(target)

    def read(
        self, method: str, request: Message, response: type[M], *, timeout_s: float | None = None
    ) -> M:
        """One unary call that changes nothing. :param method: ``Service/Method``."""
        return self._unary(method, request, response, (), timeout_s)

    def write(
        self, method: str, request: Message, response: type[M], *, timeout_s: float | None = None
    ) -> M:
        """One unary call that may change something; carries a request id."""
        metadata = ((REQUEST_ID, self._new_request_id()),)
        return self._unary(method, request, response, metadata, timeout_s)

    def stream(
        self, method: str, request: Message, response: type[M], *, timeout_s: float | None = None
    ) -> Iterator[M]:
        """The messages of a server stream, as they come. ``timeout_s`` None = no end."""
        call = self._channel.unary_stream(
            f"/vmreplica.v1.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        messages: Any = call(request, timeout=timeout_s)
        try:
            yield from messages
        except grpc.RpcError as error:
            raise _failure(error, self._target) from error
        finally:
            messages.cancel()

    def close(self) -> None:
        """Drop the connection."""
        self._channel.close()

    def _unary(
        self,
        method: str,
        request: Message,
        response: type[M],
        metadata: tuple[tuple[str, str], ...],
        timeout_s: float | None,
    ) -> M:
        call = self._channel.unary_unary(
            f"/vmreplica.v1.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        limit_s = timeout_s or self._timeout_s
        try:
            first: M = call(request, timeout=limit_s, metadata=metadata)
            return first
        except grpc.RpcError as error:
            if not self._retry_wait_s or not _is_worth_repeating(error):
                raise _failure(error, self._target) from error
        self._reconnect()
        try:
            second: M = call(request, timeout=limit_s, metadata=metadata)
            return second
        except grpc.RpcError as error:
            raise _failure(error, self._target) from error

    def _reconnect(self) -> None:
        time.sleep(min(RETRY_PAUSE_S, self._retry_wait_s))
        with contextlib.suppress(grpc.FutureTimeoutError):
            grpc.channel_ready_future(self._channel).result(timeout=self._retry_wait_s)


def _failure(error: grpc.RpcError, target: Target) -> Failure:
    """A gRPC error as the end of this command."""
    code, message, ours = _parts(error)
    if ours is not None:
        return of_problem(ours)
    foreign = foreign_problem(code, message)
    where = target.endpoint
    match foreign.reason:
        case Reason.CERTIFICATE_INVALID:
            text = f"{where} and this client do not trust each other: {message}."
            foreign.field, foreign.value = "certificate", str(target.certificate or "")
            foreign.remedy = f"vmrctl cert verify {target.certificate} --against {where}"
        case Reason.NODE_UNREACHABLE:
            text = f"{where} did not answer: {message or code}."
            foreign.field, foreign.value = "endpoint", where
            if target.certificate:
                # A refused certificate shows as a closed socket, or, where the name has a second
                # address, as whatever that one answered last.
                foreign.remedy = (
                    "If it runs, it may have refused our certificate; this shows it: "
                    f"vmrctl cert verify {target.certificate} --against {where}"
                )
        case Reason.UNIMPLEMENTED:
            text = f"{where} does not have this verb: {message or code}."
            foreign.remedy = "vmrctl version shows both versions."
        case _:
            return of_problem(foreign)
    foreign.message = text
    return of_problem(foreign)


def _is_worth_repeating(error: grpc.RpcError) -> bool:
    code, message, ours = _parts(error)
    if ours is not None:
        return ours.reason is Reason.STORE_UNAVAILABLE
    if code != "UNAVAILABLE" or any(word in message.lower() for word in _NO_SUCH_NAME):
        return False
    return foreign_problem(code, message).reason is Reason.NODE_UNREACHABLE


def _parts(error: Any) -> tuple[str, str, Problem | None]:
    trailers = error.trailing_metadata() or ()
    details = next((value for key, value in trailers if key == DETAILS_KEY), None)
    return error.code().name, error.details() or "", problem_from_details(details)


def _channel(target: Target) -> grpc.Channel:
    options = channel_options("")
    if target.ca is None or target.key is None or target.certificate is None:
        return grpc.insecure_channel(target.endpoint, options=options)
    credentials = grpc.ssl_channel_credentials(
        _pem("ca", target.ca), _pem("key", target.key), _pem("certificate", target.certificate)
    )
    return grpc.secure_channel(target.endpoint, credentials, options=options)


def _pem(key: str, path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _bad_file(key, path, f"cannot be read: {error.strerror}.") from error
    if b"-----BEGIN" not in content:
        raise _bad_file(key, path, "is not a PEM file.")
    return content


def _bad_file(key: str, path: Path, sentence: str) -> Failure:
    return Failure(
        "BAD_CONFIG",
        f"{path}:{key}: {sentence}",
        exit_code=EXIT_USAGE,
        grpc_code="INVALID_ARGUMENT",
        field=key,
        value=str(path),
        remedy="Correct the path in the context or the environment.",
    )
