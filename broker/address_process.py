"""The broker's end of broker.address_guard: implements ports.address_holder.AddressHolder."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path

log = logging.getLogger(__name__)
_ANSWER_S = 2.0


class AddressProcess:
    """Starts the guard when it is first needed, and again when it died.

    :param address: ADDRESS/PREFIX.
    """

    def __init__(self, address: str, interface: str) -> None:
        self._address = address
        self._interface = interface
        self._process: asyncio.subprocess.Process | None = None
        self._one_at_a_time = asyncio.Lock()

    async def claim(self, deadline_boottime_ms: int) -> None:
        """Hold and announce. :raises OSError: the interface refuses, the guard does not answer."""
        await self._ask(f"hold {deadline_boottime_ms}", "held")

    async def extend(self, deadline_boottime_ms: int) -> None:
        """Move the deadline; an address dropped meanwhile comes back. :raises OSError:"""
        await self._ask(f"hold {deadline_boottime_ms}", "held")

    async def release(self) -> None:
        """Drop it now, also what a predecessor left behind. Idempotent. Never raises."""
        try:
            await self._ask("drop", "dropped")
        except OSError as error:
            log.error("the client access point's address was not dropped: %s", error)

    async def close(self) -> None:
        """End the guard, which drops the address."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            async with asyncio.timeout(_ANSWER_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def pid(self) -> int:
        """The guard's process id; 0 = none runs."""
        return self._process.pid if self._process is not None else 0

    async def _ask(self, command: str, wanted: str) -> None:
        """One command, one answer; a guard that died is replaced once. :raises OSError:"""
        async with self._one_at_a_time:
            answer = await self._answer(command) or await self._answer(command)
            if answer != wanted:
                raise OSError(answer or "the guard of the address ends at once")

    async def _answer(self, command: str) -> str:
        """The guard's answer; "" where it has ended. :raises OSError: it does not answer."""
        process = await self._running()
        assert process.stdin is not None and process.stdout is not None
        answer = ""
        try:
            async with asyncio.timeout(_ANSWER_S):
                process.stdin.write(command.encode() + b"\n")
                await process.stdin.drain()
                answer = (await process.stdout.readline()).decode().strip()
        except TimeoutError as error:
            await self._end(process)
            raise OSError("the guard of the address does not answer") from error
        except (BrokenPipeError, ConnectionResetError):
            log.warning("the guard of the address has died")
        if not answer:
            await self._end(process)
        return answer

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        self._process = None
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "broker.address_guard",
                f"--address={self._address}",
                f"--interface={self._interface}",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": _import_path()},
            )
        return self._process


def _import_path() -> str:
    """The guard finds this very package, wherever the broker was started from."""
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))
