"""``/livez`` and ``/readyz`` over plain HTTP, for probes that have no client certificate.

Says yes or no and nothing else; every connection is closed after one answer and after 5 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vmreplica.core.problems import Problem, Reason

Probe = Callable[[], bool]
_TIMEOUT_S = 5.0
_MAX_REQUEST_BYTES = 8 << 10
_MAX_CONNECTIONS = 64


class HttpHealth:
    """A server of two questions.

    :param listen: HOST:PORT; port 0 takes a free one.
    :param livez: the process is up and its event loop turns (that it answers is most of it).
    :param readyz: the process can do its work now.
    """

    def __init__(self, listen: str, livez: Probe, readyz: Probe) -> None:
        self._listen = listen
        self._probes = {"/livez": livez, "/healthz": livez, "/readyz": readyz}
        self._server: asyncio.Server | None = None
        self._connections = 0
        self.port = 0

    async def start(self) -> int:
        """Listen. :returns: the port. :raises Problem: BAD_CONFIG"""
        host, _, port = self._listen.rpartition(":")
        try:
            self._server = await asyncio.start_server(
                self._serve, host.strip("[]") or None, int(port), limit=_MAX_REQUEST_BYTES
            )
        except OSError as error:
            raise Problem(
                Reason.BAD_CONFIG,
                f"Cannot listen on {self._listen}: {error.strerror}.",
                field="listen",
                value=self._listen,
                remedy="Check that the address is one of this host's and the port is free.",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def stop(self) -> None:
        """Stop listening. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= _MAX_CONNECTIONS:
                async with asyncio.timeout(_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a probe that asks badly gets no answer
        finally:
            self._connections -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        probe = self._probes.get(path)
        if method not in (b"GET", b"HEAD"):
            status, text = "405 Method Not Allowed", "GET only\n"
        elif probe is None:
            status, text = "404 Not Found", "/livez or /readyz\n"
        elif probe():
            status, text = "200 OK", "ok\n"
        else:
            status, text = "503 Service Unavailable", "not now\n"
        body = b"" if method == b"HEAD" else text.encode()
        return (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
            "Connection: close\r\nCache-Control: no-store\r\n\r\n"
        ).encode() + body
