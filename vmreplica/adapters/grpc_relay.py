"""The relay of a broker: messages of one stream passed on unparsed, both ways, in bounded memory.

At most two messages in each direction are held here; everything else waits in the transport's
windows, which grpc_options keeps small.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from vmreplica.core.problems import Problem
from vmreplica.wire.call import TRAILER_ROUTE, Call
from vmreplica.wire.node_caller import RawCall, RawStream

_log = logging.getLogger(__name__)


async def relay(call: Call, stream: RawStream, node: RawCall) -> None:
    """Pass messages on until the node ends the call; its trailers become the call's.

    :raises Problem: as the node answered, or NODE_UNREACHABLE.
    """

    async def forth() -> None:
        # A node that has ended the call lets writes fail; its own words come from read().
        with contextlib.suppress(Problem, asyncio.InvalidStateError):
            await _pump(stream.read, node.write)
            await node.done_writing()

    sending = asyncio.create_task(forth())
    try:
        await _pump(node.read, stream.write)
    finally:
        call.trailers.update(node.trailers())
        call.set_trailer(TRAILER_ROUTE, "relay")
        node.cancel()
        sending.cancel()
        await asyncio.wait((sending,))
        if not sending.cancelled() and (error := sending.exception()):
            _log.debug("the way to the node ended early: %r", error)


async def _pump(
    read: Callable[[], Awaitable[bytes | None]], write: Callable[[bytes], Awaitable[None]]
) -> None:
    """Pass all messages on, reading the next one while the last is being written."""
    coming = asyncio.ensure_future(read())
    try:
        while (message := await coming) is not None:
            coming = asyncio.ensure_future(read())
            await write(message)
    finally:
        if not coming.cancel() and not coming.cancelled():
            coming.exception()  # the end of the other side is told by the first to notice it
