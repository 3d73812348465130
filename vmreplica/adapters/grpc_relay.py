"""The relay of a broker: messages of one stream passed on unparsed, both ways, in bounded memory.

At most one message in each direction is held here; everything else waits in the transport's
windows, which grpc_options keeps small.
"""

from __future__ import annotations

import asyncio
import contextlib

from vmreplica.core.problems import Problem
from vmreplica.wire.call import TRAILER_ROUTE, Call
from vmreplica.wire.node_caller import RawCall, RawStream


async def relay(call: Call, stream: RawStream, node: RawCall) -> None:
    """Pass messages on until the node ends the call; its trailers become the call's.

    :raises Problem: as the node answered, or NODE_UNREACHABLE.
    """

    async def forth() -> None:
        # A node that has ended the call lets writes fail; its own words come from read().
        with contextlib.suppress(Problem, asyncio.InvalidStateError):
            while (message := await stream.read()) is not None:
                await node.write(message)
            await node.done_writing()

    sending = asyncio.create_task(forth())
    try:
        while (message := await node.read()) is not None:
            await stream.write(message)
    finally:
        call.trailers.update(node.trailers())
        call.set_trailer(TRAILER_ROUTE, "relay")
        node.cancel()
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
