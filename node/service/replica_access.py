"""Who may touch which replica, judged by this node's own copy of the records."""

from __future__ import annotations

from collections.abc import Sequence

from node.service.replica_parts import RecordCache
from vmreplica.core.authorization import authorize
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import AuthorizationRecord, ReplicaRecord, parse
from vmreplica.core.settings import Settings, SettingsRecord, settings_of


class ReplicaAccess:
    """Authorization and the settings it depends on."""

    def __init__(self, cache: RecordCache, keys: Keys) -> None:
        self._cache = cache
        self._keys = keys

    def settings(self) -> Settings:
        """The central settings in force, as far as this node has heard."""
        kv = self._cache.get(self._keys.settings)
        return settings_of(None if kv is None else parse(SettingsRecord, kv.value))

    def check(self, names: Sequence[str], record: ReplicaRecord) -> None:
        """Whether the host with these DNS names may send, read and locate this replica.

        :raises Problem: UNKNOWN_REPLICA for outsiders, NOT_AUTHORIZED, NO_IDENTITY.
        """
        entries = [
            parse(AuthorizationRecord, kv.value)
            for kv in self._cache.items(self._keys.authorizations)
        ]
        verdict = authorize(names, self.settings(), entries, record, "")
        if isinstance(verdict, Problem):
            raise verdict

    def check_receiving(self) -> None:
        """:raises Problem: REPLICATION_DISABLED while the cluster takes no replicas."""
        if not self.settings().replication_enabled:
            raise Problem(
                Reason.REPLICATION_DISABLED,
                "this cluster does not accept replication",
                field="replication_enabled",
                value="false",
                remedy="an administrator turns it on: vmrctl settings set replication_enabled=true",
            )
