"""Which recovery point a person means: ``latest``, a seq, or a time."""

from __future__ import annotations

from collections.abc import Sequence

from vmrctl.errors import Failure, usage
from vmrctl.values import time_ms
from vmreplica.v1.types_pb2 import Point
from vmreplica.wire.times import milliseconds


def chosen_point(points: Sequence[Point], text: str) -> Point:
    """The point that ``text`` names. :raises Failure: POINT_NOT_FOUND when there is none."""
    ordered = sorted(points, key=lambda point: point.seq)
    if text == "latest":
        fitting = ordered
    elif text.isascii() and text.isdigit():
        fitting = [point for point in ordered if point.seq == int(text)]
    else:
        try:
            limit_ms = time_ms(text)
        except ValueError as error:
            raise usage(
                f"{text!r} names no point.",
                field="--point",
                value=text,
                remedy="Write latest, a seq, or an RFC 3339 time.",
            ) from error
        fitting = [point for point in ordered if milliseconds(point.time) <= limit_ms]
    if not fitting:
        raise Failure(
            "POINT_NOT_FOUND",
            "There is no such recovery point.",
            exit_code=3,
            grpc_code="NOT_FOUND",
            field="--point",
            value=text,
            remedy="vmrctl replica points VM lists them.",
        )
    return fitting[-1]
