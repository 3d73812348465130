"""The gRPC server of a daemon: TLS 1.3 with client certificates, a socket for root, health,
reflection, and API objects mounted by service name.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from vmreplica.adapters import tls
from vmreplica.adapters.grpc_handlers import (
    Handler,
    HandlerFactory,
    RawHandler,
    own_services,
)
from vmreplica.adapters.grpc_health import HealthService, ReflectionService
from vmreplica.adapters.grpc_identity import CallReader, Denied
from vmreplica.adapters.grpc_options import MAX_CALLS, server_options
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.clock import Clock
from vmreplica.wire.call import TRAILER_NODE

_log = logging.getLogger(__name__)
_LOOK_EVERY_MS = 5_000


class GrpcServer:
    """One process's gRPC face.

    :param listen: HOST:PORT for TLS; port 0 takes a free one; "" = only the socket.
    :param tls_files: key, certificate, CA; needed where ``listen`` is given.
    :param cluster: name of our cluster, for roles and relayed identities.
    :param unix_socket: path of the socket for root; its directory is made 0700.
    :param node_name: sent as trailer ``vmreplica-node`` behind every answer ("" = none).
    :param on_denied: called with identity and problem for each refused identity.
    """

    def __init__(
        self,
        *,
        listen: str,
        tls_files: tls.TlsFiles | None,
        cluster: str,
        clock: Clock,
        unix_socket: Path | None = None,
        node_name: str = "",
        on_denied: Denied | None = None,
    ) -> None:
        self._listen = listen
        self._files = tls_files
        self._clock = clock
        self._unix_socket = unix_socket
        self._material = tls.load(tls_files, clock.wall_ms()) if tls_files else None
        self._handed_out = self._material
        self._failed_signature: object = None
        self._looked_ms = clock.boottime_ms()
        reader = CallReader(cluster, clock, self._revoked, on_denied)
        self._factory = HandlerFactory(reader, {TRAILER_NODE: node_name} if node_name else {})
        self._services: dict[str, dict[str, Handler]] = {}
        self._raw: dict[tuple[str, str], Handler] = {}
        self._health = HealthService()
        self._server: Any = None
        self.port = 0

    def add(self, service_full_name: str, implementation: object) -> None:
        """Mount an API object, e.g. as ``vmreplica.v1.ReplicaService``. Before ``start``."""
        self._services[service_full_name] = self._factory.service(service_full_name, implementation)

    def add_raw_stream(self, method: str, handler: RawHandler) -> None:
        """Mount a handler of unparsed messages at ``/package.Service/Method``; wins over ``add``.

        Right for any RPC whose requests or answers are to be passed on: one message is a stream of
        one message on the wire.
        """
        service, name = method.removeprefix("/").split("/")
        self._raw[service, name] = self._factory.raw(handler)

    def set_health(self, service: str, serving: bool) -> None:
        """Answer of grpc.health.v1 for a service name; "" is serving from start to stop."""
        self._health.set(service, serving)

    async def start(self) -> int:
        """Listen. :returns: the TLS port. :raises Problem: BAD_CONFIG where it cannot listen."""
        server = grpc.aio.server(options=server_options(), maximum_concurrent_rpcs=MAX_CALLS)
        names = sorted({*self._services, *(service for service, _ in self._raw)})
        names += [_HEALTH, reflection.SERVICE_NAME]
        self.add(_HEALTH, self._health)
        self.add(reflection.SERVICE_NAME, ReflectionService(names))
        # Version 1 differs from v1alpha in its name alone; newer clients ask for it first.
        self._services[_REFLECTION_V1] = self._services[reflection.SERVICE_NAME]
        for service in own_services():
            if service not in self._services:
                # Not offered here: the refusal says so in our own words, with a remedy.
                self.add(service, None)
        for service in {*self._services, *(service for service, _ in self._raw)}:
            methods = dict(self._services.get(service, {}))
            methods.update({name: h for (owner, name), h in self._raw.items() if owner == service})
            handler = grpc.method_handlers_generic_handler(service, methods)
            server.add_generic_rpc_handlers((handler,))
        if self._listen:
            self.port = self._bind(server, self._listen, self._credentials())
        if self._unix_socket is not None:
            self._bind(server, f"unix:{self._prepare(self._unix_socket)}", None)
        await server.start()
        if self._unix_socket is not None:
            self._unix_socket.chmod(0o600)
        self._server = server
        self._health.set("", True)
        return self.port

    async def stop(self, grace_ms: int = 2_000) -> None:
        """Refuse new calls, end server streams, let others finish for ``grace_ms``, then cancel."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self._health.stop()
        self._factory.drain()
        await server.stop(grace_ms / 1000)
        if self._unix_socket is not None:
            self._unix_socket.unlink(missing_ok=True)

    def reload(self) -> None:
        """Read the TLS files again; new connections use them.

        :raises Problem: CERTIFICATE_INVALID; the old ones stay in use.
        """
        if self._files is not None:
            self._material = tls.load(self._files, self._clock.wall_ms())

    def _revoked(self) -> frozenset[int]:
        now_ms = self._clock.boottime_ms()
        if now_ms - self._looked_ms >= _LOOK_EVERY_MS:
            # A new revocation list must hold for connections that are open, too.
            self._looked_ms = now_ms
            self._refresh()
        return self._material.revoked_serials if self._material else frozenset()

    def _credentials(self) -> grpc.ServerCredentials:
        if self._material is None:
            raise Problem(
                Reason.BAD_CONFIG,
                "Listening on the network needs key, certificate and CA.",
                field="tls",
                remedy="Set tls.certificate, tls.key and tls.ca.",
            )
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._material), self._fetch, require_client_authentication=True
        )

    def _fetch(self) -> Any:
        """Called by gRPC at each handshake, in a thread of its own: must never raise."""
        try:
            self._refresh()
            material = self._material
            if material is None or material is self._handed_out:
                return None
            self._handed_out = material
            return _configuration(material)
        except Exception:  # noqa: BLE001 - an exception here would end the process
            _log.exception("TLS files could not be looked at")
            return None

    def _refresh(self) -> None:
        if self._files is None or self._material is None:
            return
        signature = self._files.signature()
        if signature in (self._material.signature, self._failed_signature):
            return
        try:
            self._material = tls.load(self._files, self._clock.wall_ms())
            _log.info("TLS files were read again")
        except Problem as problem:
            self._failed_signature = signature
            _log.warning("the changed TLS files are not used: %s", problem.message)

    @staticmethod
    def _bind(server: Any, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return int(server.add_insecure_port(address))
            port = int(server.add_secure_port(address, credentials))
        except RuntimeError as error:
            raise Problem(
                Reason.BAD_CONFIG,
                f"Cannot listen on {address}.",
                field="listen",
                value=address,
                remedy="Check that the address is one of this host's and the port is free.",
            ) from error
        return port

    @staticmethod
    def _prepare(path: Path) -> Path:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        if path.is_socket():
            path.unlink()
        return path


_HEALTH: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_REFLECTION_FILE = reflection_pb2.DESCRIPTOR
"""Keeps the reflection service's descriptor registered."""


def _configuration(material: tls.TlsMaterial) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(material.key_pem, material.certificate_pem)], root_certificates=material.ca_pem
    )
