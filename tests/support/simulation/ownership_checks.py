"""Data-safety §1 on every transaction that the store applies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from simulation.checks import Checks
from vmreplica.core.keys import Keys
from vmreplica.core.records import NodeRecord, OwnerRecord, parse
from vmreplica.ports.cluster_store import CompareTarget, KeyValue
from vmreplica.testing import etcd_model as model
from vmreplica.testing.etcd_model import EtcdState, Keepalive, Request, Step, Transaction

Live = Mapping[str, KeyValue]
MIN_TTL_S = 2


@dataclass(slots=True)
class OwnershipChecks:
    """``leaders``: names of the brokers that believe they may act now."""

    keys: Keys
    checks: Checks
    leaders: Callable[[], list[str]]
    changes: int = 0
    owners: dict[str, OwnerRecord] = field(default_factory=dict)
    keepalives: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    """Resolved when this lease is next refreshed: the answer is then on its way."""

    def step(self, state: EtcdState, request: Request) -> Step:
        """The store's step, watched."""
        result = model.step(state, request, min_ttl_s=MIN_TTL_S)
        if isinstance(request, Keepalive) and request.lease_id in self.keepalives:
            waiting = self.keepalives.pop(request.lease_id)
            if not waiting.done():
                waiting.set_result(None)
        elif isinstance(request, Transaction):
            for event in result[2]:
                if event.kv.key.startswith(self.keys.owners) and not event.deleted:
                    self._owner(state.live, request, event.kv)
        return result

    def _owner(self, before: Live, request: Transaction, kv: KeyValue) -> None:
        replica_id = kv.key[len(self.keys.owners) :]
        record, old = parse(OwnerRecord, kv.value), self.owners.get(replica_id)
        fail, where = self.checks.fail, f"owner of {replica_id}"
        self.owners[replica_id] = record
        if self.keys.node(record.node, record.incarnation) not in before:
            fail(f"{where}: {record.node} has no lease")
        same = old is not None and (old.node, old.incarnation) == (record.node, record.incarnation)
        if record.released:
            if not same or old is None or old.released or record.epoch != old.epoch:
                fail(f"{where}: released {record}, but it was {old}")
            self.checks.marks.add("released")
            return
        if old is not None and record.epoch <= old.epoch:
            fail(f"{where}: epoch {record.epoch} after {old.epoch}")
        if same and old is not None and not old.released:
            self.checks.marks.add("epoch_raised")
            return
        self._given(before, request, record, old, where)

    def _given(
        self,
        before: Live,
        request: Transaction,
        record: OwnerRecord,
        old: OwnerRecord | None,
        where: str,
    ) -> None:
        """Another process got it: by the leader, and only where the old owner allows it."""
        self.changes += 1
        if record.epoch != (old.epoch if old else 0) + 1:
            self.checks.fail(f"{where}: epoch {record.epoch} after {old.epoch if old else 0}")
        if old is not None and not old.released:
            kv = before.get(self.keys.node(old.node, old.incarnation))
            if kv is not None and not parse(NodeRecord, kv.value).stalled:
                self.checks.fail(f"{where}: taken from {old.node}, which lives and kept it")
            self.checks.marks.add("taken_from_stalled" if kv else "taken_from_gone")
        self._guarded(request, record, old, where)
        candidates = [kv for key, kv in before.items() if key.startswith(self.keys.elections)]
        first = min(candidates, key=lambda kv: kv.create_revision, default=None)
        if first is None or not any(
            compare.key == first.key
            and compare.target is CompareTarget.CREATE
            and compare.operand == first.create_revision
            for compare in request.compares
        ):
            self.checks.fail(f"{where}: written by a broker that is not the leader")
        self.one_leader()

    def _guarded(
        self, request: Transaction, record: OwnerRecord, old: OwnerRecord | None, where: str
    ) -> None:
        """That it was right must be no luck: the transaction itself makes sure of it."""
        needed = {self.keys.node(record.node, record.incarnation)}
        if old is not None:
            needed.add(self.keys.owner(where.rpartition(" ")[2]))
            if not old.released:
                needed.add(self.keys.node(old.node, old.incarnation))
        missing = needed - {compare.key for compare in request.compares}
        if missing:
            self.checks.fail(f"{where}: written without making sure of {sorted(missing)}")

    def one_leader(self) -> None:
        """At most one broker believes that it may act."""
        leading = self.leaders()
        if len(leading) > 1:
            self.checks.fail(f"brokers {leading} both may act")
