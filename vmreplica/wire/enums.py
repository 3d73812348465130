"""Enum values in people's spelling: ``REPLICATION_STATE_NOT_ENABLED`` is ``NotEnabled``."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor import EnumDescriptor

from vmreplica.core.problems import Problem, Reason


@cache
def spellings(descriptor: EnumDescriptor) -> dict[int, str]:
    """Number → CamelCase name without the enum's prefix; UNSPECIFIED is left out."""
    values = list(descriptor.values)
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    return {
        value.number: "".join(
            word.capitalize() for word in value.name.removeprefix(prefix).split("_")
        )
        for value in values
        if value.number
    }


def name_of(enum: Any, number: int) -> str:
    """The spelling of one value; "" for UNSPECIFIED and for values of a newer version."""
    return spellings(enum.DESCRIPTOR).get(number, "")


def value_of(enum: Any, name: str, field: str = "") -> Any:
    """The number of a spelling; "" is UNSPECIFIED.

    :raises Problem: BAD_FIELD, naming what is possible.
    """
    if not name:
        return 0
    known = spellings(enum.DESCRIPTOR)
    for number, spelling in known.items():
        if spelling.casefold() == name.casefold():
            return number
    raise Problem(
        Reason.BAD_FIELD,
        f"{name!r} is not a {enum.DESCRIPTOR.name}.",
        field=field,
        value=name,
        remedy="One of " + ", ".join(known.values()) + ".",
    )
