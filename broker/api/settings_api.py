"""vmreplica.v1.SettingsService."""

from __future__ import annotations

from broker.api.access import Access
from broker.api.forward import LeaderWrites
from broker.service.composition import BrokerServices
from vmreplica.v1 import settings_pb2 as pb
from vmreplica.wire.call import Call

_SERVICE = "/vmreplica.v1.SettingsService/"


class SettingsApi:
    """Viewers read, administrators change."""

    def __init__(self, services: BrokerServices, access: Access, writes: LeaderWrites) -> None:
        self._services = services
        self._access = access
        self._writes = writes

    async def get_settings(self, call: Call, _: pb.GetSettingsRequest) -> pb.GetSettingsResponse:
        """All that are in force."""
        self._access.require_reader(call)
        settings, version = self._services.settings.show()
        return pb.GetSettingsResponse(settings=settings, version=version)

    async def update_settings(
        self, call: Call, request: pb.UpdateSettingsRequest
    ) -> pb.UpdateSettingsResponse:
        """All or none of the changes."""
        self._access.require_administrator(call)

        async def act() -> pb.UpdateSettingsResponse:
            version, changed = await self._services.settings.update(
                dict(request.settings), request.expected_version
            )
            return pb.UpdateSettingsResponse(version=version, changed=changed)

        return await self._writes.run(
            call, _SERVICE + "UpdateSettings", request, pb.UpdateSettingsResponse, act
        )
