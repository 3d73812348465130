"""The planner of merges, simulated over a thousand cycles and more."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmreplica.core.chain import chain_fault, file_count, layers_of
from vmreplica.core.compaction import (
    BASE_SHARE,
    COPIED_BASE_SHARE,
    MergePlan,
    plan_merge,
    with_merged,
)
from vmreplica.core.cycle import Disk
from vmreplica.core.manifest import Draft, Head, Layer, Manifest, RecoveryPoint
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.retention import (
    MAX_RECOVERY_POINTS,
    chain_limit,
    check_recovery_points,
    kept_points,
)

SIZE = 1 << 30
Writer = Callable[[random.Random, int], set[int]]


def manifest_of(layers: tuple[Layer, ...], points: tuple[int, ...] = ()) -> Manifest:
    return Manifest(
        replica_id="r",
        vm_uuid="u",
        vm_name="vm",
        domain_name="vm",
        trust_group="g",
        primary_access_point="p:1",
        storage_location="/s",
        policy={},
        epoch=1,
        n=1,
        incarnation="i",
        disks=(Disk("vda", SIZE), Disk("vdb", SIZE, excluded=True)),
        layers=layers,
        points=tuple(RecoveryPoint(seq=seq, time_ms=seq) for seq in points),
    )


def layer(from_seq: int, to_seq: int, size: int, tag: str = "") -> Layer:
    name = f"layers/vda.{from_seq}-{to_seq}{tag}"
    return Layer(
        file=name, target="vda", from_seq=from_seq, to_seq=to_seq, size_bytes=SIZE, bytes=size
    )


class Simulation:
    """A chain whose layers are sets of clusters; merges take ``lag`` cycles."""

    def __init__(self, base: int, keep: int = 0, lag: int = 1) -> None:
        self.content: dict[str, set[int]] = {}
        self.keep = keep
        self.lag = lag
        self.received = self.written = self.longest_over = 0
        self.running: tuple[MergePlan, int] | None = None
        self.history: dict[int, dict[int, int]] = {}
        self.disk: dict[int, int] = {}
        self.manifest = manifest_of(())
        self.add(1, set(range(base)))
        self.received = self.written = 0

    def name(self, from_seq: int, to_seq: int, clusters: set[int]) -> Layer:
        made = layer(from_seq, to_seq, max(1, len(clusters)), f".{len(self.content)}")
        self.content[made.file] = clusters
        self.written += len(clusters)
        return made

    def add(self, seq: int, clusters: set[int]) -> None:
        self.received += len(clusters)
        new = self.name(seq, seq, clusters)
        manifest = replace(self.manifest, layers=(*self.manifest.layers, new), head=Head(seq=seq))
        chain = (("vda", manifest.chain("vda")),)
        points = (*self.manifest.points, RecoveryPoint(seq=seq, time_ms=seq, chain=chain))
        hourly = tuple(p for p in points[:-1] if p.seq % 12 == 0) if self.keep else ()
        self.manifest = replace(manifest, points=kept_points((*hourly, points[-1]), self.keep))
        self._merge(seq)
        limit = chain_limit(len(self.manifest.points))
        length = file_count(layers_of(self.manifest, "vda"))
        self.longest_over = max(self.longest_over, length - limit)

    def _merge(self, seq: int) -> None:
        if self.running is not None and seq >= self.running[1]:
            plan = self.running[0]
            clusters = set().union(*(self.content[x.file] for x in plan.layers))
            merged = self.name(plan.layers[0].from_seq, plan.layers[-1].to_seq, clusters)
            self.manifest = with_merged(self.manifest, plan, merged)
            self.running = None
        if self.running is None:
            plan_now = plan_merge(self.manifest)
            self.running = plan_now and (plan_now, seq + self.lag)

    @property
    def amplification(self) -> float:
        return self.written / self.received


def uniform(count: int, total: int) -> Writer:
    return lambda r, _: {r.randrange(total) for _ in range(count)}


def hot(count: int, total: int) -> Writer:
    return lambda r, _: {
        r.randrange(total // 10 if r.random() < 0.8 else total) for _ in range(count)
    }


def growing(count: int) -> Writer:
    return lambda _, seq: set(range(10**6 + seq * count, 10**6 + (seq + 1) * count))


def bursts(total: int) -> Writer:
    return lambda r, _: {
        r.randrange(total) for _ in range(1 + min(2_000, int(r.lognormvariate(3, 1.5))))
    }


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("few clusters", uniform(20, 20_000)),
        ("many clusters", uniform(200, 20_000)),
        ("a hot tenth", hot(100, 20_000)),
        ("growing slowly", growing(5)),
        ("growing", growing(20)),
        ("growing fast", growing(100)),
        ("bursts", bursts(20_000)),
        ("one cluster", uniform(1, 20_000)),
    ],
)
def test_a_thousand_cycles_keep_the_chain_short(name: str, writer: Writer) -> None:
    seed = 5
    print(f"{name}: seed={seed}")
    draw = random.Random(seed)
    simulation = Simulation(20_000)
    for seq in range(2, 1_002):
        simulation.add(seq, writer(draw, seq))
    print(f"written/received = {simulation.amplification:.2f}")
    assert simulation.longest_over <= 0
    assert simulation.amplification <= 8


def test_a_disk_that_only_grows_stays_within_its_price_for_long() -> None:
    draw = random.Random(1)
    simulation = Simulation(20_000)
    worst = 0.0
    for seq in range(2, 3_002):
        simulation.add(seq, growing(5)(draw, seq))
        worst = max(worst, simulation.amplification)
    print(f"written/received = {worst:.2f} at worst")
    assert worst <= 8


@pytest.mark.parametrize("keep", [4, 24, MAX_RECOVERY_POINTS])
def test_kept_points_stay_whole_and_bound_the_chain(keep: int) -> None:
    seed = keep
    print(f"seed={seed}")
    draw = random.Random(seed)
    simulation = Simulation(5_000, keep=keep)
    truth: dict[int, set[int]] = {}
    written = set(simulation.content[simulation.manifest.layers[0].file])
    for seq in range(2, 1_500):
        clusters = {draw.randrange(20_000) for _ in range(30)}
        written |= clusters
        truth[seq] = set(written)
        simulation.add(seq, clusters)
        assert not chain_fault(layers_of(simulation.manifest, "vda"))
        if seq % 50 == 0:
            for point in simulation.manifest.points:
                files = dict(point.chain)["vda"]
                shown = set().union(*(simulation.content[file] for file in files))
                assert shown == truth[point.seq], f"point {point.seq} at {seq}"
    assert simulation.longest_over <= 0
    assert simulation.amplification <= 8


def test_a_short_chain_is_left_alone() -> None:
    layers = tuple(layer(seq, seq, 10) for seq in range(1, 14))
    assert plan_merge(manifest_of(layers, (13,))) is None
    assert plan_merge(manifest_of((*layers, layer(14, 14, 10)), (14,))) is not None


@pytest.mark.parametrize(
    ("reflink", "share"),
    [(True, BASE_SHARE), (False, COPIED_BASE_SHARE)],
    ids=["a quarter, shared", "half, copied"],
)
def test_a_share_of_the_base_makes_a_new_base(reflink: bool, share: float) -> None:
    base = layer(1, 1, 3_600)
    above = tuple(layer(seq, seq, int(share * 200) + 1) for seq in range(2, 20))
    plan = plan_merge(manifest_of((base, *above), (19,)), reflink=reflink)
    assert plan is not None and plan.bottom and plan.layers == (base, *above)
    smaller = tuple(replace(x, bytes=x.bytes - 1) for x in above)
    plan = plan_merge(manifest_of((base, *smaller), (19,)), reflink=reflink)
    assert plan is not None and not plan.bottom and base not in plan.layers


def test_segments_of_one_cycle_count_as_one_and_stay_together() -> None:
    segments = tuple(layer(1, 1, 100, f".s{i}") for i in range(40))
    assert file_count(segments) == 1
    few = tuple(layer(seq, seq, 1) for seq in range(2, 10))
    assert plan_merge(manifest_of((*segments, *few), (9,))) is None
    many = tuple(layer(seq, seq, 1) for seq in range(2, 20))
    plan = plan_merge(manifest_of((*segments, *many), (19,)))
    assert plan is not None and set(plan.layers) <= set(many)


def test_drafts_are_never_merged() -> None:
    layers = tuple(layer(seq, seq, 1) for seq in range(1, 20))
    draft = replace(layer(20, 20, 1), draft=Draft(cycle_id=b"c", frames=3))
    plan = plan_merge(manifest_of((*layers, draft), (19,)))
    assert plan is not None and draft not in plan.layers


def test_layers_of_odd_sizes_merge_only_with_their_base() -> None:
    layers = [layer(1, 1, 10_000)]
    layers += [replace(layer(s, s, 1), size_bytes=SIZE - 512 * (s % 2)) for s in range(2, 30)]
    assert plan_merge(manifest_of(tuple(layers), (29,))) is None
    aligned = [replace(x, size_bytes=x.size_bytes // 65_536 * 65_536) for x in layers]
    assert plan_merge(manifest_of(tuple(aligned), (29,))) is not None


@given(
    st.lists(st.integers(1, 1_000), min_size=1, max_size=70),
    st.sets(st.integers(1, 70), max_size=20),
)
@settings(max_examples=200, deadline=None)
def test_a_plan_never_crosses_a_kept_point(sizes: list[int], seqs: set[int]) -> None:
    layers = tuple(layer(seq, seq, size) for seq, size in enumerate(sizes, 1))
    points = tuple(sorted({min(x, len(sizes)) for x in seqs}))
    manifest = manifest_of(layers, points)
    plan = plan_merge(manifest)
    if plan is None:
        return
    places = [layers.index(x) for x in plan.layers]
    assert places == list(range(places[0], places[0] + len(places))) and len(places) > 1
    first, last = plan.layers[0], plan.layers[-1]
    assert not [p for p in points if first.to_seq <= p < last.to_seq]
    merged = layer(first.from_seq, last.to_seq, 1, ".merged")
    after = with_merged(manifest, plan, merged)
    assert not chain_fault(layers_of(after, "vda"))
    assert len(after.layers) == len(layers) - len(plan.layers) + 1


def test_retention_that_needs_too_long_chains_is_refused() -> None:
    assert check_recovery_points(48) == 48
    with pytest.raises(Problem) as caught:
        check_recovery_points(49)
    assert caught.value.reason is Reason.BAD_FIELD and "48" in caught.value.remedy
    points = tuple(RecoveryPoint(seq=seq, time_ms=seq) for seq in range(1, 6))
    assert [p.seq for p in kept_points(points, 0)] == [5]
    assert [p.seq for p in kept_points(points, 2)] == [3, 4, 5]
    assert chain_limit(0) == chain_limit(1) == 17 and chain_limit(60) == 64
