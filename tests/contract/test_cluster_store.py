"""The contract of ports.cluster_store: the fake, SQLite and etcd show each fact.

The meta test plants faults in the fake's model and demands that some fact notices each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.planted_models import PLANTED
from tests.contract.store_facts import FACTS
from tests.contract.store_room import etcd_room, fake_room, local_room
from vmreplica.testing.sim_loop import SimLoop, run


@pytest.fixture(params=["sqlite", "etcd"])
def make_room(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    if request.param == "sqlite":
        return lambda: local_room(tmp_path)
    cluster = request.getfixturevalue("etcd_single")
    return lambda: etcd_room(cluster)


@pytest.mark.parametrize("name", list(FACTS))
async def test_fact(name: str, make_room: Callable[[], Any]) -> None:
    async with make_room() as room:
        await FACTS[name](room)
        await room.tidy()


def _on_fake(name: str, step: Any) -> None:
    """One fact on the fake, in virtual time."""

    async def main(_: SimLoop) -> None:
        async with fake_room(step) as room:
            await FACTS[name](room)
            await room.tidy()

    run(main, 1)


@pytest.mark.parametrize("name", list(FACTS))
def test_fact_on_the_fake(name: str) -> None:
    _on_fake(name, None)


def _fails(name: str, step: Any) -> bool:
    try:
        _on_fake(name, step)
    except (Exception, pytest.fail.Exception):
        return True
    return False


@pytest.mark.parametrize("step", PLANTED, ids=lambda step: step.__name__)
def test_a_planted_fault_is_found(step: Any) -> None:
    assert any(_fails(name, step) for name in FACTS), "no fact noticed this fault"
    everything = all(_fails(name, step) for name in FACTS)
    assert not everything, "the planted model breaks everything: no test of the tests"
