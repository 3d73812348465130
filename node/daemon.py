"""One node process on real adapters: replica role, primary role, guard, API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from node.api.access import NodeAccess
from node.api.connection_service import ConnectionService
from node.api.cycle_service import CycleService
from node.api.failover_service import FailoverService
from node.api.replica_service import ReplicaService
from node.api.replication_service import ReplicationService
from node.api.small_services import EventService, VersionService
from node.api.store_service import StoreChecks, StoreService
from node.config import NodeConfig
from node.disk.os_files import OsFiles
from node.disk.replica_store import DiskReplicaStore
from node.disk.store_check import ProbeTicket, StoreCheck
from node.disk.worker_client import StoreWorker
from node.host.guard_client import GuardClient
from node.host.hook_installer import HOOK_NAME, HookInstaller
from node.host.libvirt_change_source import LibvirtChangeSource
from node.host.libvirt_connection import LibvirtConnection
from node.host.libvirt_vm_host import LibvirtVmHost
from node.planner import planner
from node.service.membership import NodeIdentity
from node.service.replica_role import ReplicaRole, ReplicaRolePorts
from node.service.replication import PrimaryRole
from node.service.storage_watch import StorageLocation
from node.service.transfer_slots import TransferLimits
from node.standalone import Standalone
from vmreplica.adapters.daemon import Signals
from vmreplica.adapters.distribution import version
from vmreplica.adapters.etcd_store import EtcdStore
from vmreplica.adapters.event_feed import EventFeed
from vmreplica.adapters.event_ring import EventRing
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.grpc_replica_link import GrpcReplicaLink
from vmreplica.adapters.grpc_server import GrpcServer
from vmreplica.adapters.http_health import HttpHealth
from vmreplica.adapters.local_store import LocalStore
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.system_randomness import SystemRandomness
from vmreplica.coordination.guarded import GuardedWriter
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.cluster_store import ClusterStore

log = logging.getLogger(__name__)
HEALTH_MS = 200
STOP_GRACE_MS = 1_500
HOOK_AGAIN_MS = 30_000
_PACKAGE = "vmreplica.v1."


class Daemon:
    """Built inside the running loop; ``run`` ends when told to stop or when a loop breaks."""

    def __init__(self, config: NodeConfig, store: ClusterStore, guard: GuardClient) -> None:
        self._config = config
        self._store = store
        self._guard = guard
        self._clock = SystemClock()
        self._randomness = SystemRandomness()
        self._keys = Keys(config.cluster)
        self._events = EventRing(self._clock, config.name, config.state_dir / "node-events.jsonl")
        self._feed = EventFeed(self._events)
        self._cache = StoreCache(store, self._clock, self._keys.root)
        self._writer = GuardedWriter(store, self._clock, self._randomness, self._keys)
        self._pool = ChannelPool(config.tls.files(), self._clock)
        self._connection = LibvirtConnection(config.libvirt_uri)
        self._host = LibvirtVmHost(
            self._connection,
            self._randomness,
            state_dir=str(config.state_dir),
            boot_file_directories=[f"{path}/" for path in config.boot_file_directories],
        )
        self.replica_role = self._replica_role()
        self.primary_role = self._primary_role()
        self._services = self._api()
        self._standalone = self._build_standalone() if config.standalone else None
        self.server = self._build_server()
        self._probes = (
            HttpHealth(config.probe_listen, lambda: True, self.replica_role.membership.may_act)
            if config.probe_listen
            else None
        )

    def _replica_role(self) -> ReplicaRole:
        config = self._config
        paths = [str(location.path) for location in config.storage_locations]
        self._files = files = OsFiles(paths)
        self._worker = StoreWorker(
            paths, started=self._guard.register_child, ended=self._guard.unregister_child
        )
        replica_store = DiskReplicaStore(
            files,
            paths,
            self._randomness,
            merger=self._worker,
            verify_before_ack=self._verify_before_ack,
        )
        return ReplicaRole(
            ReplicaRolePorts(
                identity=NodeIdentity(
                    name=config.name,
                    address=config.advertise,
                    server_name=config.server_name,
                    version=version(),
                ),
                keys=self._keys,
                store=self._store,
                cache=self._cache,
                writer=self._writer,
                clock=self._clock,
                randomness=self._randomness,
                replica_store=replica_store,
                host=self._host,
                guard=self._guard,
                events=self._events,
                locations=[
                    StorageLocation(str(x.path), x.shared) for x in config.storage_locations
                ],
                console_directory=str(config.state_dir / "console"),
                planner=planner(replica_store.clones),
                lease=config.lease.timing(),
                memory_free_bytes=memory_free_bytes,
            )
        )

    def _verify_before_ack(self) -> bool:
        return self.replica_role.access.settings().verify == "before-ack"

    def _primary_role(self) -> PrimaryRole:
        config = self._config
        return PrimaryRole(
            node=config.name,
            primary_access_point=config.access_point,
            keys=self._keys,
            cache=self._cache,
            writer=self._writer,
            link=GrpcReplicaLink(self._pool),
            source=LibvirtChangeSource(
                self._connection,
                scratch_dir=str(config.scratch),
                guard=self._guard,
                clock=self._clock,
            ),
            host=self._host,
            clock=self._clock,
            randomness=self._randomness,
            events=self._events,
            limits=self._limits,
        )

    def _limits(self) -> TransferLimits:
        settings = self.replica_role.access.settings()
        return TransferLimits(
            max_transfers_per_host=settings.max_transfers_per_host,
            max_delta_transfers_per_host=settings.max_delta_transfers_per_host,
            bandwidth_limit_bytes_per_s=settings.bandwidth_limit_bytes_per_s,
            vm_bandwidth_limit_bytes_per_s=settings.vm_bandwidth_limit_bytes_per_s,
            default_frequency_ms=settings.default_frequency_ms,
            replication_enabled=settings.replication_enabled,
            return_policy=settings.return_policy,
        )

    def _api(self) -> dict[str, object]:
        access = NodeAccess(self.replica_role, self._config.cluster)
        return {
            _PACKAGE + "CycleService": CycleService(access),
            _PACKAGE + "ReplicaService": ReplicaService(access),
            _PACKAGE + "ReplicationService": ReplicationService(
                self.primary_role, self._config.cluster
            ),
            _PACKAGE + "FailoverService": FailoverService(access),
            _PACKAGE + "ConnectionService": ConnectionService(
                access, self._pool, self._config.access_point
            ),
            _PACKAGE + "StoreService": StoreService(
                access,
                StoreChecks(
                    lambda path: StoreCheck(self._files, path, self._randomness), ProbeTicket
                ),
                [str(location.path) for location in self._config.storage_locations],
                self._pool,
            ),
            _PACKAGE + "EventService": EventService(access, self._feed.watch),
            _PACKAGE + "VersionService": VersionService(access, version=version()),
        }

    def _build_standalone(self) -> Standalone:
        config = self._config
        return Standalone(
            store=self._store,
            cache=self._cache,
            writer=self._writer,
            clock=self._clock,
            randomness=self._randomness,
            keys=self._keys,
            events=self._events,
            own_events=self._feed.watch,
            name=config.name,
            address=config.advertise,
            server_name=config.server_name,
            version=version(),
            node_services=self._services,
            node_ttl_ms=config.lease.ttl_s * 1000,
        )

    def _build_server(self) -> GrpcServer:
        config = self._config
        server = GrpcServer(
            listen=config.listen,
            tls_files=config.tls.files(),
            cluster=config.cluster,
            clock=self._clock,
            unix_socket=config.run_dir / "node.sock" if config.run_dir else None,
            node_name=config.name,
            on_denied=self._feed.denied,
        )
        mounted = dict(self._services)
        if self._standalone is not None:
            mounted.update(self._standalone.services)
        for name, implementation in mounted.items():
            server.add(name, implementation)
        return server

    async def run(self, signals: Signals) -> None:
        """Until told to stop; a loop that breaks ends the process."""
        signals.on_reload(self.server.reload)
        await self.server.start()
        if self._probes is not None:
            await self._probes.start()
        loops = [
            self._cache.run(),
            self.replica_role.run(),
            self._primary(),
            self._show_health(),
            self._keep_hook(),
        ]
        if self._standalone is not None:
            loops.append(self._standalone.run())
        working = [asyncio.ensure_future(loop) for loop in loops]
        stop = asyncio.ensure_future(signals.stop.wait())
        log.info("node %s of cluster %s runs", self._config.name, self._config.cluster)
        try:
            await asyncio.wait((*working, stop), return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                await self.replica_role.stop()
                if self._standalone is not None:
                    await self._standalone.stop()
        finally:
            await self._close(*working, stop)

    async def _primary(self) -> None:
        await self._cache.ready()
        await self.primary_role.run()

    async def _keep_hook(self) -> None:
        """The start hook of primaries is in force, proven; a host without libvirt is asked again."""
        if not self._config.libvirt_uri.startswith("qemu:"):
            await asyncio.Event().wait()  # other drivers call no hooks
        with resources.as_file(resources.files("node.host") / HOOK_NAME) as script:
            installer = HookInstaller(
                self._connection,
                self._randomness,
                script=script,
                hooks_dir=self._config.hooks_dir,
                held_file=self._config.state_dir / "held",
            )
            said = ""
            while True:
                try:
                    if await installer.install() or said:
                        log.info("the start hook is in force")
                    await asyncio.Event().wait()
                except (Problem, OSError) as failed:
                    if str(failed) != said:
                        log.warning("the start hook is not in force: %s", failed)
                    said = str(failed)
                await self._clock.sleep(HOOK_AGAIN_MS)

    async def _close(self, *tasks: asyncio.Future[Any]) -> None:
        await self.server.stop(STOP_GRACE_MS)
        if self._probes is not None:
            await self._probes.stop()
        for task in tasks:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._worker.close()
        await self._pool.close()
        await self._store.close()
        self._connection.close()
        self._events.close()
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _show_health(self) -> None:
        while True:
            alive = self.replica_role.membership.may_act()
            self.server.set_health("vmreplica.node", alive)
            if self._standalone is not None:
                self.server.set_health("vmreplica.broker", self._standalone.can_answer())
            await self._clock.sleep(HEALTH_MS)


async def run_node(config: NodeConfig, signals: Signals) -> None:
    """Open the store, start the guard, run the daemon."""
    make_directories(config)
    clock = SystemClock()
    store: ClusterStore
    if config.etcd is None:
        store = await LocalStore.open(config.state_dir / "cluster.sqlite", clock)
    else:
        store = EtcdStore(config.etcd.settings(), clock, SystemRandomness())
    locations = [str(location.path) for location in config.storage_locations]
    guard = GuardClient(config.name, config.libvirt_uri, locations, _without_guard)
    await guard.start()
    try:
        await Daemon(config, store, guard).run(signals)
    finally:
        await guard.close()


def make_directories(config: NodeConfig) -> None:
    """What the node keeps for itself. :raises Problem: BAD_CONFIG, naming the key."""
    wanted = (
        ("state_dir", config.state_dir),
        ("scratch_dir", config.scratch),
        ("state_dir", config.state_dir / "console"),
    )
    for key, directory in wanted:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Problem(
                Reason.BAD_CONFIG,
                f"{key}: {directory} cannot be made: {error.strerror}.",
                field=key,
                value=str(directory),
                remedy="Give a directory that this user may write.",
            ) from error


def _without_guard() -> None:
    """Fail closed: nothing may be written that nobody would stop."""
    log.critical("the guard has died; this process ends at once")
    os._exit(70)


def memory_free_bytes() -> int:
    """What this host could still give to VMs (MemAvailable)."""
    figures = _meminfo(Path("/proc/meminfo"))
    return figures.get("MemAvailable", 0)


def _meminfo(path: Path) -> Mapping[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1}
