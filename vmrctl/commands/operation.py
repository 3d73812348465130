"""``vmrctl operation``: work that takes longer than a second."""

from __future__ import annotations

import click

from vmrctl.completion import complete_operations
from vmrctl.paging import all_pages
from vmrctl.session import Session
from vmrctl.verbs import Noun, verb
from vmrctl.views import OPERATION
from vmrctl.waiting import follow, succeeded
from vmreplica.v1 import operation_pb2 as wire
from vmreplica.wire.json_shapes import shape

command = Noun("operation", help="Work that takes longer.")


@verb(command, "list", "vmrctl operation list")
def list_operations(session: Session) -> None:
    """List running operations and those of late."""
    items = all_pages(
        lambda token: session.client.read(
            "OperationService/ListOperations",
            wire.ListOperationsRequest(page_size=1000, page_token=token),
            wire.ListOperationsResponse,
        )
    )
    session.show_list(OPERATION, [shape(item) for item in items])


@verb(command, "show", "vmrctl operation show 6f1c2a0e-6a55-4b0b-9a59-0d6c1f7d9c11")
@click.argument("operation_id", metavar="ID", shell_complete=complete_operations)
def show(session: Session, operation_id: str) -> None:
    """Show one operation."""
    answer = session.client.read(
        "OperationService/GetOperation",
        wire.GetOperationRequest(operation_id=operation_id),
        wire.GetOperationResponse,
    )
    session.show(OPERATION, shape(answer.operation))


@verb(command, "wait", "vmrctl operation wait 6f1c2a0e-6a55-4b0b-9a59-0d6c1f7d9c11 --timeout 1h")
@click.argument("operation_id", metavar="ID", shell_complete=complete_operations)
def wait(session: Session, operation_id: str) -> None:
    """Wait for an operation's end; the exit code is that of its problem."""
    operation = follow(session, operation_id, "operation")
    session.show(OPERATION, shape(operation))
    succeeded(operation)


@verb(command, "cancel", "vmrctl operation cancel 6f1c2a0e-6a55-4b0b-9a59-0d6c1f7d9c11")
@click.argument("operation_id", metavar="ID", shell_complete=complete_operations)
def cancel(session: Session, operation_id: str) -> None:
    """Ask an operation to stop at its next safe place."""
    answer = session.client.write(
        "OperationService/CancelOperation",
        wire.CancelOperationRequest(operation_id=operation_id),
        wire.CancelOperationResponse,
    )
    operation = answer.operation
    if session.options.wait and operation.state == "Running":
        operation = follow(session, operation_id, "cancel")
    if operation.state and operation.state != "Running":
        sentence = f"Operation {operation_id} is over: {operation.state}."
    else:
        sentence = f"Operation {operation_id}: asked to stop."
    session.done(shape(operation), sentence)
