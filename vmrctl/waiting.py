"""Following an operation to its end, through changes of leader, with progress."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from vmrctl.errors import EXIT_REFUSED, Failure, of_problem, timed_out
from vmrctl.progress import Progress, Step
from vmrctl.session import Session
from vmrctl.values import shown_duration
from vmreplica.v1 import operation_pb2 as wire

if TYPE_CHECKING:
    from vmreplica.v1.types_pb2 import Operation

AGAIN_AFTER_S = 0.5
_ENDED = ("Succeeded", "Failed", "Cancelled")


def follow(session: Session, operation_id: str, title: str) -> Operation:
    """Wait until the operation has ended, however it did.

    :raises Failure: when ``--timeout`` passes first; the operation goes on.
    """
    from vmreplica.adapters.system_clock import SystemClock

    clock = SystemClock()
    deadline_ms = clock.boottime_ms() + session.options.timeout
    try:
        with session.progress(title) as progress:
            while True:
                remaining_s = (deadline_ms - clock.boottime_ms()) / 1000
                ended = _watch(session, operation_id, progress, remaining_s)
                if ended is not None:
                    return ended
                if clock.boottime_ms() + AGAIN_AFTER_S * 1000 >= deadline_ms:
                    raise _too_long(operation_id, session.options.timeout)
                time.sleep(AGAIN_AFTER_S)
    except KeyboardInterrupt:
        sys.stderr.write(f"The work goes on. Next: vmrctl operation wait {operation_id}\n")
        raise


def succeeded(operation: Operation) -> Operation:
    """The operation, if it came to a good end. :raises Failure: with its problem otherwise."""
    if operation.state == "Succeeded":
        return operation
    if operation.state == "Cancelled":
        raise Failure(
            "CANCELLED",
            f"Operation {operation.operation_id} was cancelled.",
            exit_code=EXIT_REFUSED,
            grpc_code="CANCELLED",
            field="operation_id",
            value=operation.operation_id,
        )
    from vmreplica.wire.problem_status import problem_from_map

    raise of_problem(
        problem_from_map(
            operation.problem_reason or "INTERNAL",
            operation.problem_message or f"Operation {operation.operation_id} failed.",
            dict(operation.problem_details),
        )
    )


def wait_for(session: Session, operation_id: str, title: str) -> Operation | None:
    """With an id, follow it to success; without one there is nothing to wait for."""
    return succeeded(follow(session, operation_id, title)) if operation_id else None


def _watch(
    session: Session, operation_id: str, progress: Progress, remaining_s: float
) -> Operation | None:
    """One stream of reports; None when it broke off before the operation's end."""
    request = wire.WatchOperationRequest(operation_id=operation_id)
    try:
        for report in session.client.stream(
            "OperationService/WatchOperation",
            request,
            wire.WatchOperationResponse,
            timeout_s=max(remaining_s, 0.1),
        ):
            operation = report.operation
            progress.show(
                Step(operation.step, operation.done, operation.total, operation.unit),
            )
            if operation.state in _ENDED:
                return operation
    except Failure as failure:
        if failure.grpc_code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            raise
    return None


def _too_long(operation_id: str, waited_ms: int) -> Failure:
    return timed_out(
        f"After {shown_duration(waited_ms)} operation {operation_id} is still running; it goes on.",
        f"vmrctl operation wait {operation_id}",
    )
