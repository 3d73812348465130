"""What a seed decides about a world: sizes, and which faults how often (swarm testing)."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One world. Fault weights of 0 switch a kind off in this world."""

    nodes: int
    brokers: int
    vms: int
    segment_bytes: int
    frequency_ms: int
    minutes: float
    fault_pause_s: float
    crash_node: int
    brake: int
    power_cut: int
    crash_broker: int
    crash_primary: int
    pause_node: int
    freeze_clock: int
    drift: int
    clock_step: int
    partition: int
    one_way: int
    store_unavailable: int
    store_unknown: int
    store_quorum: int
    store_slow: int
    watch_faults: int
    compaction: int
    lost_reply: int
    cut_streams: int
    storage_stall: int
    storage_error: int
    drain: int
    lose_bitmap: int


def draw(seed: int, minutes: float) -> Options:
    """The options of one seed."""
    rng = random.Random(seed)
    weights = {f.name: rng.choice((0, 1, 1, 3)) for f in fields(Options) if f.name not in _SIZES}
    if rng.random() < 0.4:
        # Few kinds, often: what needs the same fault again and again at the right moment.
        few = rng.sample(sorted(weights), rng.randint(1, 4))
        weights = {kind: int(kind in few) for kind in weights}
    if not any(weights.values()):
        weights["crash_node"] = 1
    return Options(
        nodes=rng.choice((3, 3, 4)),
        brokers=rng.choice((2, 3)),
        vms=5,
        segment_bytes=rng.choice((2_000, 1 << 40)),
        frequency_ms=rng.choice((5_000, 10_000, 10_000, 20_000)),
        minutes=minutes,
        fault_pause_s=rng.uniform(6.0, 25.0),
        **weights,
    )


_SIZES = frozenset(
    {"nodes", "brokers", "vms", "segment_bytes", "frequency_ms", "minutes", "fault_pause_s"}
)
FAULT_KINDS = tuple(f.name for f in fields(Options) if f.name not in _SIZES)
