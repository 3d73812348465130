"""The central settings: read from the cache, changed by the leader under their version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from broker.service.context import Context
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import parse, render
from vmreplica.core.settings import SettingsRecord, as_text, changed
from vmreplica.ports.cluster_store import Put, unchanged

_RACES = 5


class SettingsService:
    """`settings show` and `settings set`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def show(self) -> tuple[dict[str, str], int]:
        """All settings in force as text, and their version."""
        inventory = self._context.inventory
        return as_text(inventory.settings), inventory.settings_record.version

    async def update(
        self, changes: Mapping[str, str], expected_version: int = 0
    ) -> tuple[int, bool]:
        """Apply; (version, whether anything changed).

        :param expected_version: 0 = whatever it is now.
        :raises Problem: NO_LEADER, BAD_FIELD, STATE_REFUSES where another version is in force.
        :raises StoreUnavailable, OutcomeUnknown:
        """
        context = self._context
        key = context.keys.settings
        for _ in range(_RACES):
            guard = context.election.guard()
            kv = await context.store.get(key)
            record = parse(SettingsRecord, kv.value) if kv else SettingsRecord()
            if expected_version and record.version != expected_version:
                raise _other_version(expected_version, record.version)
            after = changed(record, changes)
            if after is record:
                return record.version, False
            op_id = context.randomness.uuid()
            result = await context.write(
                [guard, unchanged(key, kv.mod_revision if kv else 0)],
                [Put(key, render(replace(after, op_id=op_id)))],
                op_id=op_id,
            )
            if result.succeeded:
                self._tell(changes, after.version)
                return after.version, True
        raise Problem(
            Reason.BUSY, "Somebody else keeps changing the settings.", remedy="Try again."
        )

    def _tell(self, changes: Mapping[str, str], version: int) -> None:
        text = ", ".join(f"{key}={value}" for key, value in sorted(changes.items()))
        self._context.events.write(
            "settings.changed", f"Settings version {version}: {text}.", data=dict(changes)
        )


def _other_version(expected: int, found: int) -> Problem:
    return Problem(
        Reason.STATE_REFUSES,
        f"The settings have version {found}, not {expected}: somebody changed them.",
        field="expected_version",
        value=str(expected),
        remedy="Look at `vmrctl settings show` and set them again.",
    )
