"""One connection to the host's libvirt: calls in a few threads, reconnecting after its restarts."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import libvirt

from vmreplica.core.problems import Problem, Reason

log = logging.getLogger(__name__)
T = TypeVar("T")

CALL_TIMEOUT_MS = 45_000
"""Longer than the 30 s that libvirt itself waits for a domain that is busy."""
_GONE = frozenset(
    {
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_INTERNAL_ERROR,
    }
)


def _silence(_context: object, _error: object) -> None:
    """libvirt would print every error to stderr besides raising it."""


libvirt.registerErrorHandler(_silence, None)


class LibvirtConnection:
    """Runs blocking work on a live connection. Holds no domain objects between calls.

    :param threads: calls at a time; further ones wait, so that a hung libvirt costs no more.
    """

    def __init__(self, uri: str = "qemu:///system", *, threads: int = 6) -> None:
        self.uri = uri
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="vmreplica-libvirt")
        self._lock = threading.Lock()
        self._connection: Any = None

    async def run(self, work: Callable[[Any], T], *, again: bool = True) -> T:
        """``work(virConnect)`` in a thread.

        :param again: repeat it once if the connection broke under it; only for what may run twice.
        :raises Problem: NODE_UNREACHABLE: libvirt does not answer.
        :raises libvirt.libvirtError: what libvirt itself says to the call.
        """
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, self._call, work, again)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_MS / 1000):
                return await asyncio.shield(future)
        except TimeoutError as error:
            future.add_done_callback(_retrieve)
            raise _unreachable("it did not answer in time") from error

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._drop(self._connection)

    def _call(self, work: Callable[[Any], T], again: bool) -> T:
        connection = self._live()
        try:
            return work(connection)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _GONE or _answers(connection):
                raise
            log.warning("libvirt went away: %s", error)
            with self._lock:
                self._drop(connection)
            if not again:
                raise _unreachable(str(error)) from error
        return work(self._live())

    def _live(self) -> Any:
        """The connection, proven by a call that is answered, or a new one."""
        with self._lock:
            if self._connection is not None and _answers(self._connection):
                return self._connection
            self._drop(self._connection)
            try:
                self._connection = libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                raise _unreachable(str(error)) from error
            return self._connection

    def _drop(self, connection: Any) -> None:
        if connection is None:
            return
        if connection is self._connection:
            self._connection = None
        try:
            connection.close()
        except libvirt.libvirtError as error:
            log.debug("closing: %s", error)


def _answers(connection: Any) -> bool:
    try:
        return bool(connection.getLibVersion())
    except libvirt.libvirtError:
        return False


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and future.exception() is not None:
        log.warning("a libvirt call failed after we had given it up: %s", future.exception())


def _unreachable(cause: str) -> Problem:
    return Problem(
        Reason.NODE_UNREACHABLE,
        f"libvirt on this host does not answer: {cause}",
        field="libvirt_uri",
        remedy="Look at it with: systemctl status libvirtd; virsh list",
    )


def problem_of(error: Any, vm: str) -> Problem:
    """A libvirt error about one VM as a problem for people."""
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return unknown_vm(vm)
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return Problem(
            Reason.BUSY,
            f"{vm} is busy with something else: {error}",
            field="vm",
            value=vm,
            remedy=f"Look at it with: virsh domjobinfo {vm}",
        )
    return Problem(
        Reason.STATE_REFUSES,
        f"libvirt refuses for {vm}: {error}",
        field="vm",
        value=vm,
        remedy="See libvirtd's log: journalctl -u libvirtd",
    )


def unknown_vm(vm: str) -> Problem:
    """There is no such domain here."""
    return Problem(
        Reason.UNKNOWN_VM,
        f"this host has no VM {vm}",
        field="vm",
        value=vm,
        remedy="List them with: virsh list --all",
    )
