"""What every protected VM of a host shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.service.bandwidth import TokenBucket
from node.service.cycle_runner import CycleRunner
from node.service.replication_records import ReplicationRecords
from node.service.transfer_slots import TransferLimits, TransferSlots
from vmreplica.ports.change_source import ChangeSource
from vmreplica.ports.clock import Clock
from vmreplica.ports.event_log import EventLog
from vmreplica.ports.randomness import Randomness
from vmreplica.ports.replica_link import ReplicaLink


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """One per node process."""

    link: ReplicaLink
    source: ChangeSource
    records: ReplicationRecords
    runner: CycleRunner
    slots: TransferSlots
    link_bucket: TokenBucket
    limits: Callable[[], TransferLimits]
    clock: Clock
    randomness: Randomness
    events: EventLog
