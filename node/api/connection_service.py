"""vmreplica.v1.ConnectionService: can this node replicate to that client access point?"""

from __future__ import annotations

import asyncio
import socket

from node.api.access import NodeAccess
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.core.authorization import access_point
from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import connection_pb2, version_pb2
from vmreplica.wire.call import Call

_CONNECT_S = 3.0
_CALL_MS = 5_000


class ConnectionService:
    """One row a check, and no check behind a failed one that it rests on.

    :param own_access_point: HOST:PORT by which the other side knows this side.
    """

    def __init__(self, access: NodeAccess, pool: ChannelPool, own_access_point: str) -> None:
        self._access = access
        self._pool = pool
        self._own = own_access_point

    async def test_connection(
        self, call: Call, request: connection_pb2.TestConnectionRequest
    ) -> connection_pb2.TestConnectionResponse:
        """Name, TCP, TLS and the other side's names, our names, authorization."""
        self._access.require_administrator(call)
        parsed = access_point(request.to)
        if parsed is None:
            raise Problem(
                Reason.BAD_FIELD,
                f"{request.to!r} is no client access point.",
                field="to",
                value=request.to,
                remedy="Give HOST:PORT.",
            )
        rows: list[connection_pb2.ConnectionCheck] = []
        nodes = await self._checks(request.to, parsed, rows)
        if request.each_node:
            rows += [await self._node(node) for node in nodes]
        return connection_pb2.TestConnectionResponse(checks=rows)

    async def _checks(
        self, to: str, parsed: tuple[str, int], rows: list[connection_pb2.ConnectionCheck]
    ) -> list[connection_pb2.NodeAddress]:
        rows.append(self._own_names())
        addresses = await self._resolved(to, parsed, rows)
        reached = [a for a in addresses if await self._reached(a, parsed[1], rows)]
        if reached and await self._answers(to, rows):
            return await self._authorized(to, rows)
        return []

    async def _resolved(
        self, to: str, parsed: tuple[str, int], rows: list[connection_pb2.ConnectionCheck]
    ) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(*parsed, type=socket.SOCK_STREAM)
        except OSError as error:
            remedy = f"Add {parsed[0]} to DNS or to /etc/hosts of this host."
            rows.append(self._row("name", to, False, str(error), remedy))
            return []
        addresses = sorted({str(entry[4][0]) for entry in found})
        rows.append(self._row("name", to, True, ", ".join(addresses)))
        return addresses

    async def _reached(
        self, address: str, port: int, rows: list[connection_pb2.ConnectionCheck]
    ) -> bool:
        target = f"{address}:{port}"
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(address, port)
        except (OSError, TimeoutError) as error:
            detail = str(error) or f"no answer within {_CONNECT_S:.0f} s"
            remedy = f"Let TCP {port} through on the way, and see that the broker runs."
            rows.append(self._row("tcp", target, False, detail, remedy))
            return False
        writer.close()
        rows.append(self._row("tcp", target, True, "connected"))
        return True

    async def _answers(self, to: str, rows: list[connection_pb2.ConnectionCheck]) -> bool:
        try:
            answer = await self._pool.unary(
                to,
                "",
                "/vmreplica.v1.VersionService/GetVersion",
                version_pb2.GetVersionRequest(),
                version_pb2.GetVersionResponse,
                timeout_ms=_CALL_MS,
            )
        except Problem as problem:
            rows.append(self._row("tls", to, False, problem.message, problem.remedy))
            return False
        detail = f"{answer.server} of cluster {answer.cluster}, version {answer.version}"
        rows.append(self._row("tls", to, True, detail))
        return True

    def _own_names(self) -> connection_pb2.ConnectionCheck:
        """Our certificate must show the host of our own access point."""
        try:
            names = self._pool.material().identity.dns_names
        except Problem as problem:
            return self._row("own names", self._own, False, problem.message, problem.remedy)
        parsed = access_point(self._own)
        host = parsed[0] if parsed else self._own
        shown = ", ".join(names)
        if host in {name.lower() for name in names}:
            return self._row("own names", self._own, True, shown)
        remedy = f"Issue this host's certificate with the SAN {host}."
        return self._row("own names", self._own, False, f"it shows {shown or 'none'}", remedy)

    async def _authorized(
        self, to: str, rows: list[connection_pb2.ConnectionCheck]
    ) -> list[connection_pb2.NodeAddress]:
        """Admission's own question; its answer names the nodes that would be sent to."""
        try:
            answer = await self._pool.unary(
                to,
                "",
                "/vmreplica.v1.ConnectionService/ListAddresses",
                connection_pb2.ListAddressesRequest(primary_access_point=self._own),
                connection_pb2.ListAddressesResponse,
                timeout_ms=_CALL_MS,
            )
        except Problem as problem:
            rows.append(self._row("authorization", to, False, problem.message, problem.remedy))
            return []
        rows.append(self._row("authorization", to, True, f"{self._own} may send replicas there"))
        return list(answer.items)

    async def _node(self, node: connection_pb2.NodeAddress) -> connection_pb2.ConnectionCheck:
        """One node of the other side at its own address, its certificate's name verified."""
        try:
            answer = await self._pool.unary(
                node.address,
                node.server_name,
                "/vmreplica.v1.VersionService/GetVersion",
                version_pb2.GetVersionRequest(),
                version_pb2.GetVersionResponse,
                timeout_ms=_CALL_MS,
            )
        except Problem as problem:
            remedy = f"Let this host reach {node.address}, or cycles go through relay."
            return self._row("node", node.address, False, f"{node.node}: {problem.message}", remedy)
        detail = f"{node.node} shows {node.server_name}, version {answer.version}"
        return self._row("node", node.address, True, detail)

    def _row(
        self, name: str, target: str, ok: bool, detail: str, remedy: str = ""
    ) -> connection_pb2.ConnectionCheck:
        return connection_pb2.ConnectionCheck(
            name=name,
            target=f"{target} (from {self._access.role.parts.node})",
            ok=ok,
            detail=detail,
            remedy=remedy,
        )
