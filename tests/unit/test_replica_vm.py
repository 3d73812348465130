"""Replica VMs at the hypervisor follow ownership, also across a host's death and return."""

from __future__ import annotations

import asyncio

from tests.unit.replica_world import DISKS, REPLICA, XML, Node, World
from vmreplica.testing import sim_loop
from vmreplica.testing.fake_vm_host import model_vm


async def _left_over(node: Node) -> None:
    """What libvirt still has of a replica that another node owns by now."""
    node.host.add(model_vm("mine", "00000000-0000-0000-0000-000000000001", DISKS))
    await node.host.define_replica(
        XML.decode(),
        domain_name="guest1",
        vm_uuid="11111111-1111-1111-1111-111111111111",
        replica_id=REPLICA,
        disks=[disk.target for disk in DISKS],
        folder="/replicas/x",
    )


def test_a_host_that_comes_back_soon_undefines_what_it_no_longer_owns() -> None:
    async def main(_: object) -> None:
        world = World()
        try:
            owner, back = await world.start("r1"), await world.start("r2")
            await _left_over(back)
            await world.create(owner)
            await asyncio.sleep(10)
            assert await owner.host.list_replica_ids() == (REPLICA,)
            assert await back.host.list_replica_ids() == ()
            assert [vm.name for vm in await back.host.list_vms()] == ["mine"]
        finally:
            await world.close()

    sim_loop.run(main, 1)


def test_a_replica_vm_that_somebody_undefines_is_defined_again_and_told() -> None:
    async def main(_: object) -> None:
        world = World()
        try:
            owner = await world.start("r1")
            await world.create(owner)
            await asyncio.sleep(10)
            await owner.host.undefine_replica(REPLICA)
            await asyncio.sleep(70)
            assert await owner.host.list_replica_ids() == (REPLICA,)
            assert owner.events.names.count("replication.state_changed") == 1
        finally:
            await world.close()

    sim_loop.run(main, 1)
