"""A day of a broker as its events tell it, with virtual times."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from broker_world import World, play

from vmreplica.ports.event_log import Severity

GOLDEN = Path(__file__).with_name("broker.txt")


def test_a_day_of_a_broker() -> None:
    lines: list[str] = []
    told: list[str] = []

    async def story(world: World) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        names: dict[str, str] = {}

        def say(who: str, text: str) -> None:
            for replica_id, name in names.items():
                text = text.replace(replica_id, name).replace(replica_id[:8], "********")
            lines.append(f"{loop.time() - began:6.1f} s  {who:4}  {text}")

        def listen(broker: object, who: str) -> None:
            def write(
                name: str,
                message: str,
                *,
                severity: Severity = Severity.INFO,
                replica_id: str = "",
                vm_name: str = "",
                data: Mapping[str, str] | None = None,
            ) -> None:
                if replica_id:
                    names.setdefault(replica_id, f"<{vm_name}>")
                say(who, f"{name} [{severity.value}] {message}")

            broker.events.write = write  # type: ignore[attr-defined]

        async def steps(seconds: float) -> None:
            """Whole seconds apart, so that hundredths of chance do not show."""
            target = round(loop.time() - began + seconds)
            await asyncio.sleep(began + target - loop.time())

        await world.settings()
        first = world.broker("b1")
        listen(first, "b1")
        await world.leader()
        await world.node("r1")
        await world.node("r2", running_vms=1)
        await steps(3)
        say("test", "two VMs are enabled, then the first once more")
        for number, name in ((1, "web"), (2, "web"), (1, "web")):
            await world.admit(first, number, name)
        await steps(2)
        say("test", "r3 joins, r1 is killed")
        await world.node("r3")
        await steps(3)
        world.kill_node("r1")
        await steps(3)
        say("test", "r3 is drained")
        await first.services.drain.drain("r3")
        for replica_id, owner in world.owners().items():
            if owner.node == "r3":
                await world.release(replica_id)
        await steps(3)
        say("test", "a second broker comes, the first stops cleanly")
        second = world.broker("b2")
        listen(second, "b2")
        await steps(2)
        await first.services.stop()
        await steps(1)
        await second.services.drain.undrain("r3")
        told.append("\n".join(lines) + "\n")

    play(story, seed=3)
    (text,) = told
    assert text == GOLDEN.read_text(), f"now it reads:\n{text}"
