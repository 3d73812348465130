"""vmreplica.v1.OperationService."""

from __future__ import annotations

from collections.abc import AsyncIterator

from broker.api.access import Access
from broker.service.composition import BrokerServices
from vmreplica.core.filters import page, parse_filter
from vmreplica.core.records import OperationRecord, OperationState
from vmreplica.v1 import operation_pb2 as pb
from vmreplica.wire.call import Call
from vmreplica.wire.record_messages import operation_message

WATCH_MS = 500


class OperationService:
    """Viewers watch, administrators cancel. Answered by every broker, from the store itself."""

    def __init__(self, services: BrokerServices, access: Access) -> None:
        self._services = services
        self._access = access

    async def get_operation(
        self, call: Call, request: pb.GetOperationRequest
    ) -> pb.GetOperationResponse:
        """One operation."""
        self._access.require_reader(call)
        record = await self._services.operations.get(request.operation_id)
        return pb.GetOperationResponse(operation=operation_message(record))

    async def list_operations(
        self, call: Call, request: pb.ListOperationsRequest
    ) -> pb.ListOperationsResponse:
        """Running ones and those finished within a day, oldest first."""
        self._access.require_reader(call)
        terms = parse_filter(request.filter, ("verb", "target", "state"))
        records = await self._services.operations.list()
        items, token = page(
            (r for r in records if terms.accepts(_facts(r))),
            lambda r: f"{r.started_ms:016d}/{r.operation_id}",
            request.page_size,
            request.page_token,
        )
        return pb.ListOperationsResponse(
            items=[operation_message(r) for r in items], next_page_token=token
        )

    async def watch_operation(
        self, call: Call, request: pb.WatchOperationRequest
    ) -> AsyncIterator[pb.WatchOperationResponse]:
        """Its state now and at every change, until it is finished."""
        self._access.require_reader(call)
        shown: OperationRecord | None = None
        while True:
            record = await self._services.operations.get(request.operation_id)
            if record != shown:
                shown = record
                yield pb.WatchOperationResponse(operation=operation_message(record))
            if record.state is not OperationState.RUNNING:
                return
            await self._services.context.clock.sleep(WATCH_MS)

    async def cancel_operation(
        self, call: Call, request: pb.CancelOperationRequest
    ) -> pb.CancelOperationResponse:
        """Ask it to stop; it ends when whoever performs it has cleaned up."""
        self._access.require_administrator(call)
        record = await self._services.operations.request_cancel(request.operation_id)
        return pb.CancelOperationResponse(operation=operation_message(record))


def _facts(record: OperationRecord) -> dict[str, str]:
    return {"verb": record.verb, "target": record.target, "state": record.state.value}
