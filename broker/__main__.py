"""vmreplica-broker: builds one broker on real adapters and runs it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import sys
from pathlib import Path

from broker.address_process import AddressProcess
from broker.api.mount import BrokerApi, api_objects
from broker.config import BrokerConfig
from broker.service.composition import BrokerServices, build_services
from vmreplica.adapters import tls
from vmreplica.adapters.daemon import Signals, run_daemon
from vmreplica.adapters.distribution import version
from vmreplica.adapters.etcd_settings import read_credentials
from vmreplica.adapters.etcd_store import EtcdStore
from vmreplica.adapters.event_feed import EventFeed
from vmreplica.adapters.event_ring import EventRing
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.grpc_node_caller import GrpcNodeCaller
from vmreplica.adapters.grpc_relay import relay
from vmreplica.adapters.grpc_server import GrpcServer
from vmreplica.adapters.http_health import HttpHealth
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.system_randomness import SystemRandomness
from vmreplica.core.identity import RoleKind
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import BrokerRecord

log = logging.getLogger(__name__)
DEFAULT_CONFIG = Path("/etc/vmreplica/broker.yaml")
HEALTH_MS = 200
STOP_GRACE_MS = 1_500
_M_ARENA_MAX = -8


def check(config: BrokerConfig) -> None:
    """What --check and each start look at beyond the file itself. :raises Problem:"""
    material = tls.load(config.tls.files(), SystemClock().wall_ms())
    read_credentials(config.etcd.settings())
    if not material.identity.has_role(config.cluster, RoleKind.BROKER):
        raise Problem(
            Reason.BAD_CONFIG,
            f"tls.certificate: {config.tls.certificate} bears no role broker of {config.cluster}.",
            field="tls.certificate",
            remedy=f"vmrctl cert issue --role spiffe://{config.cluster}/broker/{config.name} …",
        )


class Daemon:
    """One broker process."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        clock, randomness = SystemClock(), SystemRandomness()
        self._clock = clock
        self._events = EventRing(clock, config.name, config.state_dir / "broker-events.jsonl")
        self._feed = EventFeed(self._events)
        self._store = EtcdStore(config.etcd.settings(), clock, randomness)
        self._pool = ChannelPool(config.tls.files(), clock)
        self._holder = _address_of(config)
        self.services = build_services(
            store=self._store,
            clock=clock,
            randomness=randomness,
            keys=Keys(config.cluster),
            events=self._events,
            record=BrokerRecord(
                name=config.name,
                address=config.advertise,
                server_name=config.advertise.rpartition(":")[0].strip("[]"),
                version=version(),
            ),
            client_access_point=config.access_point,
            address_holder=self._holder,
            lease=config.election.timing(),
        )
        api = api_objects(
            self.services,
            GrpcNodeCaller(self._pool, clock),
            own_events=self._feed.watch,
            server=config.name,
            pump=relay,
        )
        self.server = self._server(api)
        self._probes = (
            HttpHealth(config.probe_listen, lambda: True, self.services.can_answer)
            if config.probe_listen
            else None
        )

    async def run(self, signals: Signals) -> None:
        """Until told to stop; a loop that breaks ends the process."""
        signals.on_reload(self.server.reload)
        await self.server.start()
        if self._probes is not None:
            await self._probes.start()
        working = asyncio.create_task(self.services.run())
        health = asyncio.create_task(self._show_health())
        stop = asyncio.create_task(signals.stop.wait())
        log.info("broker %s of cluster %s runs", self._config.name, self._config.cluster)
        try:
            await asyncio.wait((working, health, stop), return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                # First of all: the next candidate leads before we close anything.
                await self.services.stop()
        finally:
            await self._close(working, health, stop)

    async def _close(self, *tasks: asyncio.Task[object]) -> None:
        await self.server.stop(STOP_GRACE_MS)
        if self._probes is not None:
            await self._probes.stop()
        for task in tasks:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._holder is not None:
            await self._holder.close()
        await self._pool.close()
        await self._store.close()
        self._events.close()
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _show_health(self) -> None:
        while True:
            self.server.set_health("vmreplica.broker", self.services.can_answer())
            self.server.set_health("vmreplica.broker.leader", self.services.election.may_act())
            await self._clock.sleep(HEALTH_MS)

    def _server(self, api: BrokerApi) -> GrpcServer:
        config = self._config
        server = GrpcServer(
            listen=config.listen,
            tls_files=config.tls.files(),
            cluster=config.cluster,
            clock=self._clock,
            unix_socket=config.run_dir / "broker.sock" if config.run_dir else None,
            on_denied=self._feed.denied,
        )
        for name, implementation in api.services.items():
            server.add(name, implementation)
        for method, handler in api.raw.items():
            server.add_raw_stream(method, handler)
        return server


def _address_of(config: BrokerConfig) -> AddressProcess | None:
    point = config.client_access_point
    return AddressProcess(point.address, point.interface) if point.kind == "vip" else None


async def _main(config: BrokerConfig, signals: Signals) -> None:
    await Daemon(config).run(signals)


def use_one_arena() -> None:
    """Let all threads allocate from one heap.

    gRPC's threads each fill an arena of their own with messages that pass through: measured with
    eight relayed streams and a slow receiver, 11 MiB a stream become 7.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def main() -> int:
    """The command's entry point."""
    use_one_arena()
    return run_daemon(
        "vmreplica-broker", DEFAULT_CONFIG, BrokerConfig, _main, check=check, version=version()
    )


__all__ = ["BrokerServices", "Daemon", "main"]

if __name__ == "__main__":
    sys.exit(main())
