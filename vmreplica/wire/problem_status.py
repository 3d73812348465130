"""Problem ↔ gRPC status: the only such table.

A problem travels as the call's status plus ``grpc-status-details-bin``: google.rpc.Status with one
ErrorInfo{reason, domain ``vmreplica.dev``, metadata}. A status without it was made by something
else (the transport, a proxy, another server) and is translated by ``foreign_problem``.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.cluster_store import OutcomeUnknown, StoreRefused, StoreUnavailable

DOMAIN = "vmreplica.dev"
DETAILS_KEY = "grpc-status-details-bin"
MAX_VALUE_CHARACTERS = 512
MAX_MESSAGE_CHARACTERS = 1_024

_CERTIFICATE_WORDS = (
    "certificate_verify_failed",
    "certificate verify failed",
    "hostname verification",
    "is not in peer certificate",
    "ssl_error_ssl",
    "tlsv1_alert",
    "bad_certificate",
    "certificate_required",
    "wrong_version_number",
    "tsi_protocol_failure",
    "tls handshake",
)

_FOREIGN: dict[str, Reason] = {
    "UNAVAILABLE": Reason.NODE_UNREACHABLE,
    "DEADLINE_EXCEEDED": Reason.NODE_UNREACHABLE,
    "CANCELLED": Reason.NODE_UNREACHABLE,
    "UNAUTHENTICATED": Reason.NO_IDENTITY,
    "PERMISSION_DENIED": Reason.NOT_AUTHORIZED,
    "UNIMPLEMENTED": Reason.UNIMPLEMENTED,
    "INVALID_ARGUMENT": Reason.BAD_FIELD,
    "NOT_FOUND": Reason.UNKNOWN_REPLICA,
    "ALREADY_EXISTS": Reason.STATE_REFUSES,
    "FAILED_PRECONDITION": Reason.STATE_REFUSES,
    "ABORTED": Reason.BUSY,
    "OUT_OF_RANGE": Reason.SEQ_GAP,
    "DATA_LOSS": Reason.REPLICA_DAMAGED,
}


def problem_to_map(problem: Problem) -> dict[str, str]:
    """Everything of a problem but its reason and message, as ErrorInfo's metadata."""
    metadata = {
        "field": problem.field,
        "value": problem.value[:MAX_VALUE_CHARACTERS],
        "remedy": problem.remedy[:MAX_MESSAGE_CHARACTERS],
        "retryable": "true" if problem.retryable else "false",
    }
    if problem.cap:
        metadata["cap"] = problem.cap
    if problem.node:
        metadata["node"] = problem.node
    if problem.epoch:
        metadata["epoch"] = str(problem.epoch)
    return metadata


def problem_from_map(reason: str, message: str, metadata: Mapping[str, str]) -> Problem:
    """The reverse; a reason that this version does not know becomes INTERNAL, named in the text."""
    known = reason in Reason.__members__
    epoch = metadata.get("epoch", "")
    return Problem(
        Reason(reason) if known else Reason.INTERNAL,
        message if known else f"{reason}: {message}",
        field=metadata.get("field", ""),
        value=metadata.get("value", ""),
        remedy=metadata.get("remedy", ""),
        retryable=metadata.get("retryable") == "true",
        cap=metadata.get("cap", ""),
        node=metadata.get("node", ""),
        epoch=int(epoch) if epoch.isascii() and epoch.isdecimal() and len(epoch) < 21 else 0,
    )


def to_status(problem: Problem) -> status_pb2.Status:
    """A problem as google.rpc.Status."""
    info = error_details_pb2.ErrorInfo(
        reason=problem.reason.value, domain=DOMAIN, metadata=problem_to_map(problem)
    )
    message = problem.message[:MAX_MESSAGE_CHARACTERS]
    status = status_pb2.Status(code=code_pb2.Code.Value(problem.grpc_code), message=message)
    status.details.add().Pack(info)
    return status


def to_details(problem: Problem) -> bytes:
    """The value of ``grpc-status-details-bin``."""
    return bytes(to_status(problem).SerializeToString())


def problem_from_details(details: bytes | None) -> Problem | None:
    """The problem that another of us sent; None where the details are not ours."""
    if not details:
        return None
    try:
        status = status_pb2.Status.FromString(details)
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
                return problem_from_map(info.reason, status.message, dict(info.metadata))
    except DecodeError:
        return None
    return None


def from_status(code_name: str, message: str, details: bytes | None = None) -> Problem:
    """Any non-OK status as a problem: ours exactly, others by the nearest reason."""
    return problem_from_details(details) or foreign_problem(code_name, message)


def foreign_problem(code_name: str, message: str) -> Problem:
    """A status without our details: the transport, a proxy or another server made it."""
    text = message.lower()
    if code_name == "UNAVAILABLE" and any(word in text for word in _CERTIFICATE_WORDS):
        return Problem(
            Reason.CERTIFICATE_INVALID,
            f"The TLS handshake failed: {message}"[:MAX_MESSAGE_CHARACTERS],
            remedy="Check both certificates with 'vmrctl cert verify FILE --against HOST:PORT'.",
        )
    if code_name == "RESOURCE_EXHAUSTED":
        if "larger than max" in text:
            remedy = "Send smaller messages; the limit is 4 MiB."
            return Problem(Reason.FRAME_TOO_LARGE, message, remedy=remedy)
        remedy = "Try again in a moment."
        return Problem(Reason.TOO_MANY_STREAMS, message or code_name, remedy=remedy)
    reason = _FOREIGN.get(code_name, Reason.INTERNAL)
    remedy = ""
    if reason is Reason.NODE_UNREACHABLE:
        remedy = "Check that the other side runs and that the network lets the port through."
    return Problem(reason, message or code_name, remedy=remedy)


def problem_of(error: BaseException) -> Problem:
    """What a caller is told of an exception; the text of a bug stays inside."""
    match error:
        case Problem():
            return error
        case OutcomeUnknown():
            return Problem(
                Reason.STORE_UNAVAILABLE,
                "The cluster store did not answer; whether the change was made is not known.",
                remedy="Repeat with the same request id: what was done is not done twice.",
            )
        case StoreUnavailable():
            return Problem(
                Reason.STORE_UNAVAILABLE,
                "The cluster store cannot be reached; nothing was changed.",
                remedy="Try again; if it lasts, check the store's members.",
            )
        case StoreRefused():
            return Problem(
                Reason.LEASE_LOST,
                "The cluster store refused the change; this process may have lost its lease.",
                remedy="Try again.",
            )
        case _:
            return Problem(
                Reason.INTERNAL,
                "An internal error occurred; the log of the answering process names it.",
                remedy="Please report it with that log.",
            )
