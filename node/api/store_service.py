"""vmreplica.v1.StoreService of one node: does a storage location keep what replicas rely on?"""

from __future__ import annotations

from collections.abc import Sequence

from node.api.access import NodeAccess
from node.disk.files import Files
from node.disk.store_check import Finding, ProbeTicket, StoreCheck
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.core.identity import RoleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import NodeRecord, parse
from vmreplica.ports.replica_store import StorageFailed
from vmreplica.v1 import store_pb2
from vmreplica.wire.call import Call, require_role

_PROBE_MS = 20_000
_REMEDY = "Use a file system that keeps this promise, exported and mounted with sync."


class StoreService:
    """Runs the check here, and its peer's step on every other node that offers the location."""

    def __init__(
        self, access: NodeAccess, files: Files, locations: Sequence[str], pool: ChannelPool
    ) -> None:
        self._access = access
        self._files = files
        self._locations = tuple(locations)
        self._pool = pool

    async def check_store(
        self, call: Call, request: store_pb2.CheckStoreRequest
    ) -> store_pb2.CheckStoreResponse:
        """One row for each check and node; a failed check is a row."""
        self._access.require_administrator(call)
        path = self._location(request.path)
        answer = store_pb2.CheckStoreResponse()
        peers: list[NodeRecord | None] = [*self._peers(path)]
        # One check for each peer: the names it links must be fresh. Alone: the local half.
        for peer in peers or [None]:
            answer.checks.extend(await self._check(path, peer))
        return answer

    async def probe_store(
        self, call: Call, request: store_pb2.ProbeStoreRequest
    ) -> store_pb2.ProbeStoreResponse:
        """The peer's step, asked by the node that checks."""
        kinds = (RoleKind.NODE, RoleKind.BROKER, RoleKind.ADMINISTRATOR)
        require_role(call, self._access.cluster, *kinds)
        path = self._location(request.path)
        word, _, hexed = request.step.partition(" ")
        try:
            ticket = ProbeTicket(request.token, bytes.fromhex(hexed))
        except ValueError:
            word = ""
        if word != "probe" or len(request.token) != 16:
            raise Problem(
                Reason.BAD_FIELD,
                "The step of a check is the word probe and the digest of what was written.",
                field="step",
                value=request.step[:64],
                remedy="Ask a node or a broker for CheckStore.",
            )
        findings = await StoreCheck(self._files, path, self._access.role.parts.randomness).probe(
            ticket
        )
        bad = [f"{x.name}: {x.detail}" for x in findings if not x.ok]
        return store_pb2.ProbeStoreResponse(ok=not bad, detail="; ".join(bad) or "all seen")

    async def _check(self, path: str, peer: NodeRecord | None) -> list[store_pb2.StoreCheck]:
        me = self._access.role.parts.node
        check = StoreCheck(self._files, path, self._access.role.parts.randomness)
        try:
            ticket, findings = await check.prepare()
        except StorageFailed as failed:
            return [_row(Finding("writable", False, str(failed)), me)]
        rows = [_row(finding, me) for finding in findings]
        probed = False
        try:
            if peer is not None:
                shown = await self._ask(path, peer, ticket)
                probed = shown.ok
                rows.append(_row(shown, peer.name))
        finally:
            rows += [_row(x, me) for x in await check.finish(ticket, probed=probed)]
        return rows

    async def _ask(self, path: str, peer: NodeRecord, ticket: ProbeTicket) -> Finding:
        request = store_pb2.ProbeStoreRequest(
            path=path, step=f"probe {ticket.probe_digest.hex()}", token=ticket.tag
        )
        try:
            answer = await self._pool.unary(
                peer.address,
                peer.server_name,
                "/vmreplica.v1.StoreService/ProbeStore",
                request,
                store_pb2.ProbeStoreResponse,
                timeout_ms=_PROBE_MS,
            )
        except Problem as problem:
            return Finding("shared", False, problem.message)
        return Finding("shared", answer.ok, answer.detail)

    def _peers(self, path: str) -> list[NodeRecord]:
        parts = self._access.role.parts
        living = [parse(NodeRecord, kv.value) for kv in parts.cache.items(parts.keys.nodes)]
        return [
            node
            for node in living
            if node.name != parts.node and any(x.path == path and x.shared for x in node.storage)
        ]

    def _location(self, path: str) -> str:
        if path.rstrip("/") in self._locations:
            return path.rstrip("/")
        raise Problem(
            Reason.BAD_FIELD,
            f"{path!r} is no storage location of this node.",
            field="path",
            value=path,
            remedy="Configured here: " + (", ".join(self._locations) or "none") + ".",
        )


def _row(finding: Finding, node: str) -> store_pb2.StoreCheck:
    return store_pb2.StoreCheck(
        name=finding.name,
        node=node,
        ok=finding.ok,
        detail=finding.detail,
        remedy="" if finding.ok else _REMEDY,
    )
