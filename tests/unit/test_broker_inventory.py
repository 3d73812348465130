"""The broker's view of replicas: what is kept, what it costs, and that it follows changes."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.service.inventory import Inventory
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem
from vmreplica.core.records import (
    DiskRecord,
    NodeRecord,
    OwnerRecord,
    PolicyRecord,
    ReplicaRecord,
    render,
)
from vmreplica.ports.cluster_store import KeyValue
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer

KEYS = Keys("replica-cluster")


def cache() -> StoreCache:
    store = FakeClusterStore(FakeStoreServer(0))
    return StoreCache(store, FakeClock(true_ms=lambda: 0.0), KEYS.root)


def record(number: int, **fields: object) -> ReplicaRecord:
    replica_id = f"{number:08d}-2222-3333-4444-555555555555"
    made = ReplicaRecord(
        replica_id=replica_id,
        vm_uuid=f"{number:08d}-aaaa-bbbb-cccc-dddddddddddd",
        vm_name=f"customer-vm-{number}",
        domain_name=f"customer-vm-{number}",
        trust_group="DEFAULT/cap.primary.example.org",
        primary_access_point="cap.primary.example.org:7443",
        storage_location="/srv/vmreplica/replicas",
        folder_path=f"/srv/vmreplica/replicas/{replica_id}.0123456789abcdef0123456789abcdef",
        disks=(
            DiskRecord(target="vda", size_bytes=1 << 33),
            DiskRecord(target="vdb", size_bytes=1 << 33, excluded=True),
        ),
        placement_node="r1",
        placement_reasons=("r1: chosen, 0 replicas, 0 VMs running, 88.0 GiB to spare in /s",) * 3,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


class Feed:
    """Writes keys into a cache as a watch would."""

    def __init__(self) -> None:
        self.cache = cache()
        self.inventory = Inventory(self.cache, KEYS)
        self.revision = 0

    def put(self, key: str, value: str) -> None:
        self.revision += 1
        self.cache.note(KeyValue(key, value, 1, self.revision, 1))

    def replica(self, made: ReplicaRecord) -> ReplicaRecord:
        self.put(KEYS.replica(made.replica_id), render(made))
        return made

    def owner(self, replica_id: str, node: str, **fields: object) -> None:
        made = OwnerRecord(node=node, incarnation="i1", epoch=1)
        self.put(KEYS.owner(replica_id), render(replace(made, **fields)))  # type: ignore[arg-type]

    def delete(self, key: str) -> None:
        self.revision += 1
        self.cache.forget(key, self.revision)


def test_a_replica_costs_less_than_four_kibibytes() -> None:
    count = 2_000
    tracemalloc.start()
    try:
        feed = Feed()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(count):
            made = feed.replica(record(number))
            feed.owner(made.replica_id, f"r{number % 3}", op_id=made.replica_id)
            index = KEYS.replica_index(made.trust_group, made.vm_uuid)
            feed.put(index, made.replica_id)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    each = (after - before) / count
    print(f"{each:.0f} bytes a replica")
    assert each <= 4_096


def test_it_follows_names_folders_and_sizes() -> None:
    feed = Feed()
    inventory = feed.inventory
    one = feed.replica(record(1, policy=PolicyRecord(folder="mine")))
    assert inventory.find("customer-vm-1") == one
    assert inventory.index.committed_bytes(one.storage_location) == 1 << 33
    assert inventory.index.folder_taken("mine", one.storage_location)
    renamed = feed.replica(replace(one, vm_name="new", domain_name="new (1)"))
    assert inventory.find("new") == renamed
    assert inventory.find("customer-vm-1") is None
    assert inventory.domain_name_taken("new (1)")
    assert not inventory.domain_name_taken("customer-vm-1")
    assert inventory.index.committed_bytes(one.storage_location) == 1 << 33
    feed.delete(KEYS.replica(one.replica_id))
    assert inventory.find("new") is None
    assert inventory.index.committed_bytes(one.storage_location) == 0
    assert not inventory.index.folder_taken("mine", one.storage_location)
    assert not inventory.domain_name_taken("new (1)")


def test_one_vm_may_have_a_replica_in_each_trust_group() -> None:
    feed = Feed()
    feed.replica(record(1))
    other = feed.replica(record(2, vm_uuid=record(1).vm_uuid, trust_group="g"))
    assert feed.inventory.replica_of("g", other.vm_uuid) == other
    with pytest.raises(Problem):
        feed.inventory.find(other.vm_uuid)
    feed.delete(KEYS.replica(other.replica_id))
    assert feed.inventory.replica_of("g", other.vm_uuid) is None
    assert feed.inventory.find(other.vm_uuid) == record(1)


@pytest.mark.parametrize("text", ["[]", "{}", "nonsense", '{"vm_name": 1}'])
def test_a_damaged_record_is_as_if_there_were_none(text: str) -> None:
    feed = Feed()
    made = feed.replica(record(1))
    feed.owner(made.replica_id, "r1")
    feed.put(KEYS.replica(made.replica_id), text)
    feed.put(KEYS.owner(made.replica_id), text)
    assert feed.inventory.find(made.replica_id) is None
    assert feed.inventory.owner(made.replica_id) is None
    assert not feed.inventory.needy()
    feed.put(KEYS.node("r1", "i1"), text)
    assert not feed.inventory.live_nodes()


steps = st.lists(
    st.tuples(
        st.sampled_from(["replica", "owner", "release", "node", "stall", "gone", "delete"]),
        st.integers(0, 3),
        st.sampled_from(["r1", "r2"]),
    ),
    max_size=40,
)


@given(steps)
def test_needy_is_what_a_plain_look_at_all_keys_says(program: list[tuple[str, int, str]]) -> None:
    feed = Feed()
    for verb, number, node in program:
        replica_id = record(number).replica_id
        match verb:
            case "replica":
                feed.replica(record(number))
            case "owner":
                feed.owner(replica_id, node)
            case "release":
                feed.owner(replica_id, node, released=True)
            case "node" | "stall":
                made = NodeRecord(
                    name=node,
                    incarnation="i1",
                    address="a:1",
                    server_name="a",
                    version="1",
                    stalled=verb == "stall",
                )
                feed.put(KEYS.node(node, "i1"), render(made))
            case "gone":
                feed.delete(KEYS.node(node, "i1"))
            case _:
                feed.delete(KEYS.replica(replica_id))
                feed.delete(KEYS.owner(replica_id))
    live = {kv.key: '"stalled":true' in kv.value for kv in feed.cache.items(KEYS.nodes)}
    expected = set()
    for kv in feed.cache.items(KEYS.replicas):
        replica_id = kv.key[len(KEYS.replicas) :]
        owner = feed.cache.get(KEYS.owner(replica_id))
        node = '"r1"' if owner and '"node":"r1"' in owner.value else '"r2"'
        working = owner is not None and live.get(KEYS.node(node.strip('"'), "i1")) is False
        if not working or (owner and '"released":true' in owner.value):
            expected.add(replica_id)
    assert {r.replica_id for r in feed.inventory.needy()} == expected
