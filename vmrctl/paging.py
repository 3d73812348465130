"""Reading a list to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Page(Protocol[T_co]):
    """An answer with items and the token of the next page."""

    @property
    def items(self) -> Iterable[T_co]:
        """The items of this page."""
        ...

    @property
    def next_page_token(self) -> str:
        """Where the next page begins; "" at the end."""
        ...


def all_pages(read: Callable[[str], Page[T]]) -> list[T]:
    """All items of all pages; ``read`` gets the token of the page to read."""
    items: list[T] = []
    token = ""
    while True:
        page = read(token)
        items.extend(page.items)
        if not page.next_page_token or page.next_page_token == token:
            return items
        token = page.next_page_token
