"""Emptying a node: its replicas go elsewhere at the ends of their cycles, new ones stay away.

The drain state stands in the node's config record, so that it survives broker and node. The node
itself gives its replicas up; the relocator gives them to others; this loop counts what is left.
"""

from __future__ import annotations

from dataclasses import replace

from broker.service.context import Context
from broker.service.inventory import NodeView
from broker.service.leader_loop import LeaderLoop
from vmreplica.coordination.operations import Operations
from vmreplica.core.placement import PlacementRequest, refusal
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import (
    DrainState,
    NodeConfigRecord,
    OperationRecord,
    OperationState,
    parse,
    render,
)
from vmreplica.ports.cluster_store import Put, unchanged

LOOK_MS = 1_000
VERB = "drain node"
_RACES = 5
_STEP = "waiting for the ends of cycles"
_STEP_LOST = "the node is lost; waiting for it to come back"


class Drain:
    """`node drain` and `node undrain`."""

    def __init__(self, context: Context, operations: Operations) -> None:
        self._context = context
        self._operations = operations
        self._loop = LeaderLoop(context, "drain", self.look, LOOK_MS)

    async def run(self) -> None:
        """While this broker leads, until cancelled."""
        keys = self._context.keys
        stop = self._context.inventory.cache.subscribe(
            lambda key: self._loop.wake() if key.startswith(keys.node_configs) else None
        )
        try:
            await self._loop.run()
        finally:
            stop()

    async def drain(self, name: str) -> str:
        """Begin; the operation's id. A node that is drained already keeps its operation.

        :raises Problem: NO_LEADER, UNKNOWN_NODE, NO_NODE_FITS where its replicas have no other
            place.
        :raises StoreUnavailable, OutcomeUnknown:
        """
        context = self._context
        context.election.guard()
        self._check_known(name)
        config = context.inventory.node_config(name)
        if config.drain is not DrainState.READY and config.operation_id:
            return config.operation_id
        self._check_room(name)
        running = await self._operations.create(VERB, name, unit="replicas", step=_STEP)
        changed, config = await self._set(name, DrainState.DRAINING, running.operation_id)
        if not changed:
            await running.cancelled()
        else:
            self._loop.wake()
        return config.operation_id or running.operation_id

    async def undrain(self, name: str) -> bool:
        """Let it work again; whether that changed anything. An unfinished drain is cancelled.

        :raises Problem: NO_LEADER, UNKNOWN_NODE. :raises StoreUnavailable, OutcomeUnknown:
        """
        self._context.election.guard()
        self._check_known(name)
        before = self._context.inventory.node_config(name)
        changed, _ = await self._set(name, DrainState.READY, "")
        if changed:
            if before.operation_id:
                await self._operations.finish(before.operation_id, OperationState.CANCELLED)
            self._tell("node.undrained", f"Node {name} takes replicas again.", name)
        return changed

    async def look(self) -> None:
        """Count what is left on each draining node, and finish."""
        inventory = self._context.inventory
        for view in inventory.nodes():
            config = view.config
            if config.drain is not DrainState.DRAINING:
                continue
            operation = self._operation(config.operation_id)
            if operation is not None and operation.cancel_requested:
                await self.undrain(view.name)
                continue
            await self._advance(view, operation)

    async def _advance(self, view: NodeView, operation: OperationRecord | None) -> None:
        name, left = view.name, view.replicas
        if operation is not None and operation.state is OperationState.RUNNING:
            total = max(operation.total, left)
            done = total - left
            step = _STEP_LOST if view.record is None else _STEP
            if (done, total, step) != (operation.done, operation.total, operation.step):
                await self._operations.update(
                    operation.operation_id, done=done, total=total, step=step
                )
        if left or view.record is None:
            # A lost node has not been emptied by its drain: that is decided when it is back.
            return
        config = self._context.inventory.node_config(name)
        changed, _ = await self._set(name, DrainState.DRAINED, config.operation_id)
        if changed:
            self._tell("node.drained", f"Node {name} keeps no replicas any more.", name)
        if operation is not None:
            await self._operations.finish(operation.operation_id, OperationState.SUCCEEDED)

    def _operation(self, operation_id: str) -> OperationRecord | None:
        kv = self._context.inventory.cache.get(self._context.keys.operation(operation_id))
        return parse(OperationRecord, kv.value) if kv else None

    async def _set(
        self, name: str, state: DrainState, operation_id: str
    ) -> tuple[bool, NodeConfigRecord]:
        """Write the drain state; (False, what stands) where it is no step onwards from there."""
        context = self._context
        key = context.keys.node_config(name)
        for _ in range(_RACES):
            kv = await context.store.get(key)
            config = parse(NodeConfigRecord, kv.value) if kv else NodeConfigRecord(name=name)
            if config.drain is state or not _follows(config.drain, state):
                return False, config
            op_id = context.randomness.uuid()
            after = replace(config, drain=state, operation_id=operation_id, op_id=op_id)
            result = await context.write(
                [context.election.guard(), unchanged(key, kv.mod_revision if kv else 0)],
                [Put(key, render(after))],
                op_id=op_id,
            )
            if result.succeeded:
                return True, after
        raise Problem(
            Reason.BUSY, f"Somebody else keeps changing node {name}.", remedy="Try again."
        )

    def _check_known(self, name: str) -> None:
        names = self._context.inventory.node_names()
        if name not in names:
            raise unknown_node(name, names)

    def _check_room(self, name: str) -> None:
        """Each storage location it keeps replicas in must be reached by another working node."""
        inventory = self._context.inventory
        others = [n.load for n in inventory.live_nodes() if n.load.name != name]
        for location in sorted(inventory.index.locations_of(name)):
            request = PlacementRequest(
                storage_location=location, size_bytes=0, version=self._context.version
            )
            refusals = {node.name: refusal(request, node) for node in others}
            if all(refusals.values()):
                reasons = "; ".join(f"{n}: {why}" for n, why in sorted(refusals.items()))
                raise Problem(
                    Reason.NO_NODE_FITS,
                    f"The replicas of {name} in {location} would have no place: "
                    + (reasons or "no other node is alive")
                    + ".",
                    field="node",
                    value=name,
                    remedy="Bring another node up that offers this storage location.",
                )

    def _tell(self, event: str, message: str, name: str) -> None:
        self._context.events.write(event, message, data={"node": name})


def _follows(before: DrainState, after: DrainState) -> bool:
    """Draining comes only after Ready, Drained only after Draining; Ready after both."""
    return after is DrainState.READY or (before, after) in (
        (DrainState.READY, DrainState.DRAINING),
        (DrainState.DRAINING, DrainState.DRAINED),
    )


def unknown_node(name: str, names: tuple[str, ...]) -> Problem:
    """Nobody has heard of this node."""
    return Problem(
        Reason.UNKNOWN_NODE,
        f"There is no node {name!r} in this cluster.",
        field="node",
        value=name,
        remedy="Known nodes: " + (", ".join(names) or "none") + ".",
    )
