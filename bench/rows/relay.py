"""A relayed stream beside nginx grpc_pass and HAProxy; a redirected one beside a direct one."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.context import Bench
from bench.proxies import HAPROXY, NGINX, Proxy, ProxySetting, haproxy, nginx
from bench.relay_room import RelayRoom, relay_room
from bench.result import Result, Tried
from bench.stream_client import frame, stream
from tests.support.broker_room import free_port
from vmreplica.adapters.tls import TlsFiles

MIB = 1 << 20
_FRAMES = 768
_FRAMES_TUNING = 256
Starter = Callable[[Path, TlsFiles, ProxySetting, int, int], tuple[Proxy, str]]


def measure(bench: Bench) -> list[Result]:
    """``relay``."""
    with tempfile.TemporaryDirectory(prefix="vmrbench") as directory:
        return asyncio.run(_measure(bench, Path(directory)))


async def _measure(bench: Bench, directory: Path) -> list[Result]:
    async with relay_room(directory / "room") as room:
        return [await _Relay(bench, directory, room).measure()]


class _Relay:
    def __init__(self, bench: Bench, directory: Path, room: RelayRoom) -> None:
        self._bench = bench
        self._directory = directory
        self._room = room
        self._frame = frame(os.urandom(MIB))
        self._frames = 256 if bench.quick else _FRAMES

    async def measure(self) -> Result:
        bench = self._bench
        nginx_best, nginx_tried = await self._tune("nginx", nginx, NGINX)
        haproxy_best, haproxy_tried = await self._tune("haproxy", haproxy, HAPROXY)
        nginx_port, haproxy_port = free_port(), free_port()
        room = self._room
        proxies = []
        try:
            configs = []
            for start, best, port in (
                (nginx, nginx_best, nginx_port),
                (haproxy, haproxy_best, haproxy_port),
            ):
                proxy, text = start(self._directory, room.proxy_files, best, port, room.sink_port)
                proxies.append(proxy)
                configs += [proxy.command, *(f"  {line}" for line in text.splitlines())]
            ways = {
                "ours": room.broker_port,
                "nginx": nginx_port,
                "haproxy": haproxy_port,
                "direct": room.sink_port,
            }
            speeds: dict[str, list[float]] = {way: [] for way in ways}
            for port in ways.values():
                await self._speed(port, _FRAMES_TUNING // 4)
            for number in range(bench.runs(9)):
                # The order turns, so that no way always follows the same other one.
                names = list(ways)
                for way in names[number % 4 :] + names[: number % 4]:
                    speeds[way].append(await self._speed(ways[way], self._frames))
                told = ", ".join(f"{way} {runs[-1]:.0f}" for way, runs in speeds.items())
                bench.say(f"relay: {told} MB/s")
        finally:
            for proxy in proxies:
                proxy.close()
        return self._result(speeds, configs, [*nginx_tried, *haproxy_tried])

    async def _tune(
        self, name: str, start: Starter, settings: tuple[ProxySetting, ...]
    ) -> tuple[ProxySetting, list[Tried]]:
        """The best of the settings, the median of two or three runs each."""
        tried = []
        for setting in settings[: self._bench.runs(len(settings), 3)]:
            port = free_port()
            room = self._room
            proxy, _ = start(self._directory, room.proxy_files, setting, port, room.sink_port)
            try:
                runs = [await self._speed(port, _FRAMES_TUNING) for _ in range(3)]
            finally:
                proxy.close()
            tried.append(Tried(f"{name}: {setting.text}", median(runs)))
            self._bench.say(f"relay: {tried[-1].setting}: {tried[-1].value:.0f} MB/s")
        best = max(range(len(tried)), key=lambda place: tried[place].value)
        return settings[best], tried

    async def _speed(self, port: int, frames: int) -> float:
        room = self._room
        address = f"localhost:{port}"
        took = await stream(room.files, address, room.replica_id, self._frame, frames)
        return frames * MIB / 1e6 / took

    def _result(
        self, speeds: dict[str, list[float]], configs: list[str], tried: list[Tried]
    ) -> Result:
        faster = max(("nginx", "haproxy"), key=lambda way: median(speeds[way]))
        slower = "haproxy" if faster == "nginx" else "nginx"
        name = {"nginx": "nginx grpc_pass", "haproxy": "HAProxy"}
        return Result(
            name="relay",
            what=f"one Replicate stream of {self._frames} MiB through the broker, mutual TLS on "
            "both hops; beside the faster of nginx grpc_pass and HAProxy",
            unit="MB/s",
            higher_is_better=True,
            ours=tuple(speeds["ours"]),
            peer=tuple(speeds[faster]),
            peer_name=name[faster],
            target=1.0,
            commands=("broker: python -m broker --config …; peers:", *configs),
            tried=tuple(tried),
            notes=(
                (
                    "same client, same sink (a bare grpc.aio server that parses nothing), same message "
                    "(one frame of 16 clusters), TLS 1.3 with AES-128-GCM and certificates on both "
                    "sides of both hops, all on one machine"
                ),
                (
                    "the broker also finds the owner, checks who sends and follows a change of owner; "
                    "the peers pass bytes to a fixed address"
                ),
            ),
            details={
                f"{name[slower]}, MB/s": speeds[slower],
                "direct to the sink, MB/s": speeds["direct"],
                "direct, median, MB/s": median(speeds["direct"]),
            },
        )
