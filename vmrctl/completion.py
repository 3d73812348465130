"""What the shell offers: names from the context file, and from the server within a second.

A completion that cannot be had is an empty one; it never prints and never raises.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from vmrctl import contexts
from vmrctl.errors import Failure

if TYPE_CHECKING:
    from vmrctl.client import Client

TIMEOUT_S = 1.0
VARIABLE = "_VMRCTL_COMPLETE"


def complete_contexts(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of contexts."""
    try:
        names = contexts.load(contexts.config_path(os.environ)).contexts
    except Failure:
        return []
    return [_typed(name) for name in sorted(names) if name.startswith(incomplete)]


def complete_replications(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[str]:
    """VM names of this side's replications."""

    def ask(client: Client) -> Iterable[str]:
        from vmreplica.v1 import replication_pb2 as wire

        request = wire.ListReplicationsRequest(page_size=1000)
        answer = client.read(
            "ReplicationService/ListReplications", request, wire.ListReplicationsResponse
        )
        return (item.vm_name for item in answer.items)

    return _asked(ctx, incomplete, ask)


def complete_replicas(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """VM names of this side's replicas."""

    def ask(client: Client) -> Iterable[str]:
        from vmreplica.v1 import replica_pb2 as wire

        request = wire.ListReplicasRequest(page_size=1000)
        answer = client.read("ReplicaService/ListReplicas", request, wire.ListReplicasResponse)
        return (item.vm_name for item in answer.items)

    return _asked(ctx, incomplete, ask)


def complete_nodes(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of nodes."""

    def ask(client: Client) -> Iterable[str]:
        from vmreplica.v1 import node_pb2 as wire

        answer = client.read(
            "NodeService/ListNodes", wire.ListNodesRequest(), wire.ListNodesResponse
        )
        return (item.name for item in answer.items)

    return _asked(ctx, incomplete, ask)


def complete_operations(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Ids of operations."""

    def ask(client: Client) -> Iterable[str]:
        from vmreplica.v1 import operation_pb2 as wire

        request = wire.ListOperationsRequest(page_size=1000)
        answer = client.read(
            "OperationService/ListOperations", request, wire.ListOperationsResponse
        )
        return (item.operation_id for item in answer.items)

    return _asked(ctx, incomplete, ask)


def _asked(
    ctx: click.Context, incomplete: str, ask: Callable[[Client], Iterable[str]]
) -> list[str]:
    from vmrctl.session import OPTIONS_KEY, Options

    options = ctx.meta.get(OPTIONS_KEY) or Options()
    try:
        target = contexts.resolve(
            endpoint=options.endpoint, context=options.context, environ=os.environ
        )
        from vmrctl.client import Client

        client = Client(target, timeout_s=TIMEOUT_S, retry_wait_s=0.0)
        try:
            names: Any = set(ask(client))
        finally:
            client.close()
    except Failure:
        return []
    return [_typed(name) for name in sorted(names) if name.startswith(incomplete)]


def _typed(name: str) -> str:
    """A name as it must stand on the line: bash, unlike zsh, takes words as they come.

    Twice, since the script reads the answer with ``read``, which takes one backslash away.
    """
    if os.environ.get(VARIABLE, "").startswith("bash"):
        return re.sub(r"[^\w@%+=:,./-]", lambda found: "\\\\" + found[0], name)
    return name
