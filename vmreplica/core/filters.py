"""The filter language of lists (`key=value,…`) and their page tokens."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from vmreplica.core.problems import Problem, Reason

T = TypeVar("T")
DEFAULT_PAGE = 100
MAX_PAGE = 1_000
KEYS = ("vm_name", "vm_uuid", "state", "health", "mode", "owner", "trust_group")


@dataclass(frozen=True, slots=True)
class Filter:
    """Key → values allowed. Different keys must all hold; of one key's values any."""

    terms: tuple[tuple[str, frozenset[str]], ...] = ()

    def accepts(self, facts: Mapping[str, str]) -> bool:
        """Whether the facts of one item fit; a fact that is missing fits nothing."""
        return all(facts.get(key, "") in values for key, values in self.terms)

    def values_of(self, key: str) -> frozenset[str]:
        """The values asked for; empty = any."""
        return next((values for k, values in self.terms if k == key), frozenset())


def parse_filter(text: str, keys: Iterable[str] = KEYS) -> Filter:
    """``vm_name=a,state=Error,state=Suspended``. :raises Problem: BAD_FIELD."""
    known = tuple(keys)
    terms: dict[str, set[str]] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or key.strip() not in known:
            raise Problem(
                Reason.BAD_FIELD,
                f"{part!r} is no filter.",
                field="filter",
                value=text,
                remedy="Write key=value,… over " + ", ".join(known) + ".",
            )
        terms.setdefault(key.strip(), set()).add(value.strip())
    return Filter(tuple((key, frozenset(values)) for key, values in terms.items()))


def page_size(asked: int) -> int:
    """0 = 100; at most 1,000. :raises Problem: BAD_FIELD."""
    if not 0 <= asked <= MAX_PAGE:
        raise Problem(
            Reason.BAD_FIELD,
            f"A page cannot hold {asked} items.",
            field="page_size",
            value=str(asked),
            remedy=f"Give 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}.",
        )
    return asked or DEFAULT_PAGE


def token_after(key: str) -> str:
    """The page token that goes on behind ``key``."""
    return base64.urlsafe_b64encode(b"1:" + key.encode()).decode()


def key_of(token: str) -> str:
    """The key a token stands for; "" = from the start. :raises Problem: BAD_FIELD."""
    if not token:
        return ""
    try:
        data = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error):
        data = ""
    if not data.startswith("1:"):
        raise Problem(
            Reason.BAD_FIELD,
            "This page token was not made by this service.",
            field="page_token",
            value=token[:80],
            remedy="Give the next_page_token of the page before, or none.",
        )
    return data[2:]


def page(items: Iterable[T], key: Callable[[T], str], size: int, token: str) -> tuple[list[T], str]:
    """One page of ``items`` in the order of ``key``, and the token of the next ("" = the last)."""
    after = key_of(token)
    limit = page_size(size)
    ordered = sorted((i for i in items if key(i) > after), key=key)
    if len(ordered) <= limit:
        return ordered, ""
    return ordered[:limit], token_after(key(ordered[limit - 1]))
