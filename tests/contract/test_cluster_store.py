"""The contract of ports.cluster_store: the fake, SQLite and etcd show each fact.

The meta test plants faults in the fake's model and demands that some fact notices each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.planted_models import PLANTED, leases_run_out_early
from tests.contract.store_facts import FACTS, SLOW
from tests.contract.store_room import etcd_room, fake_room, local_room
from vmreplica.testing import etcd_model as model


@pytest.fixture(params=["fake", "sqlite", "etcd"])
def make_room(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    match request.param:
        case "fake":
            return fake_room
        case "sqlite":
            return lambda: local_room(tmp_path)
        case _:
            cluster = request.getfixturevalue("etcd_single")
            return lambda: etcd_room(cluster)


@pytest.mark.parametrize("name", list(FACTS))
async def test_fact(name: str, make_room: Callable[[], Any]) -> None:
    async with make_room() as room:
        await FACTS[name](room)
        await room.tidy()


async def _fails(name: str, step: Any) -> bool:
    try:
        async with asyncio.timeout(6), fake_room(step) as room:
            await FACTS[name](room)
    except (Exception, pytest.fail.Exception):
        return True
    return False


@pytest.mark.parametrize("step", PLANTED, ids=lambda step: step.__name__)
async def test_a_planted_fault_is_found(step: Any) -> None:
    names = sorted(SLOW if step is leases_run_out_early else FACTS.keys() - SLOW)
    failed = await asyncio.gather(*(_fails(name, step) for name in names))
    found_by = [name for name, found in zip(names, failed, strict=True) if found]
    assert found_by, "no fact noticed this fault"
    assert len(found_by) < len(FACTS), "the planted model breaks everything: no test of the tests"


async def test_the_right_model_shows_every_fact() -> None:
    """Else the test above would find faults where none were planted."""
    names = sorted(FACTS.keys() - SLOW)
    failed = await asyncio.gather(*(_fails(name, model.step) for name in names))
    assert [name for name, found in zip(names, failed, strict=True) if found] == []
