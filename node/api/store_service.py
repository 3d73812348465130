"""vmreplica.v1.StoreService of one node: does a storage location keep what replicas rely on?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from node.api.access import NodeAccess
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.core.identity import RoleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import NodeRecord, parse
from vmreplica.ports.replica_store import StorageFailed
from vmreplica.v1 import store_pb2
from vmreplica.wire.call import Call, require_role

_PROBE_MS = 20_000
_REMEDY = "Use a file system that keeps this promise, exported and mounted with sync."


class Finding(Protocol):
    """What was seen of one property (disk.store_check.Finding)."""

    @property
    def name(self) -> str: ...

    @property
    def ok(self) -> bool: ...

    @property
    def detail(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """A finding of this service's own."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class StoreChecks:
    """The checks of node.disk.store_check, handed in where the node is composed.

    :param check: a StoreCheck of one location.
    :param ticket: a ProbeTicket from its tag and digest.
    """

    check: Callable[[str], Any]
    ticket: Callable[[str, bytes], Any]


class StoreService:
    """Runs the check here, and its peer's step on every other node that offers the location."""

    def __init__(
        self,
        access: NodeAccess,
        checks: StoreChecks,
        locations: Sequence[str],
        pool: ChannelPool,
    ) -> None:
        self._access = access
        self._checks = checks
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
            ticket = self._checks.ticket(request.token, bytes.fromhex(hexed))
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
        findings: Sequence[Finding] = await self._checks.check(path).probe(ticket)
        bad = [f"{x.name}: {x.detail}" for x in findings if not x.ok]
        return store_pb2.ProbeStoreResponse(ok=not bad, detail="; ".join(bad) or "all seen")

    async def _check(self, path: str, peer: NodeRecord | None) -> list[store_pb2.StoreCheck]:
        me = self._access.role.parts.node
        check = self._checks.check(path)
        try:
            ticket, findings = await check.prepare()
        except StorageFailed as failed:
            return [_row(_Seen("writable", False, str(failed)), me)]
        rows = [_row(finding, me) for finding in findings]
        probed = False
        try:
            if peer is not None:
                shown = await self._ask(path, peer, ticket.tag, ticket.probe_digest)
                probed = shown.ok
                rows.append(_row(shown, peer.name))
        finally:
            rows += [_row(x, me) for x in await check.finish(ticket, probed=probed)]
        return rows

    async def _ask(self, path: str, peer: NodeRecord, tag: str, probe_digest: bytes) -> Finding:
        request = store_pb2.ProbeStoreRequest(
            path=path, step=f"probe {probe_digest.hex()}", token=tag
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
            return _Seen("shared", False, problem.message)
        return _Seen("shared", answer.ok, answer.detail)

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
