"""vmreplica.v1.LocationService."""

from __future__ import annotations

from broker.api.access import Access
from broker.service.locator import Locator
from vmreplica.v1 import location_pb2
from vmreplica.wire.call import TRAILER_EPOCH, Call
from vmreplica.wire.replica_messages import location_to_message


class LocationService:
    """Answered by every broker from its cache."""

    def __init__(self, access: Access, locator: Locator) -> None:
        self._access = access
        self._locator = locator

    async def locate(
        self, call: Call, request: location_pb2.LocateRequest
    ) -> location_pb2.LocateResponse:
        """Where the replica's owner is, or with ``relay`` the client access point."""
        self._locator.check_heard()
        record = self._access.replica(call, request.replica_id)
        location = self._locator.locate(record, relay=request.relay)
        call.set_trailer(TRAILER_EPOCH, str(location.epoch))
        return location_to_message(location, route="relay" if request.relay else "direct")
