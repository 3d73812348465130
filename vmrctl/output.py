"""Results as text: table, wide, json, yaml, csv.

``json`` and ``yaml`` print the shape as it is. ``table`` shows the columns a person reads first;
``wide`` and ``csv`` have every JSON name as a column, nested objects as JSON in their cell. Text
that came from elsewhere never reaches a terminal with control characters in it.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

FORMATS = ("table", "wide", "json", "yaml", "csv")
Shape = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its heading, where its value lies, how a person reads it."""

    heading: str
    path: str
    show: Callable[[Any], str] | None = None
    right: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """How one kind of object is shown.

    :param columns: the columns of ``table``.
    :param names: every JSON name of the kind, in order: the columns of ``wide`` and ``csv``.
    """

    kind: str
    columns: tuple[Column, ...]
    names: tuple[str, ...]


def plain(text: str) -> str:
    """``text`` with control and formatting characters made visible."""
    return "".join(
        c if c == " " or unicodedata.category(c)[0] not in "CZ" else f"\\x{ord(c):02x}"
        for c in text
    )


def listing(view: View, items: Sequence[Shape], output: str, next_page_token: str = "") -> str:
    """Many objects of one kind."""
    match output:
        case "json":
            return json_text({"items": list(items), "next_page_token": next_page_token})
        case "yaml":
            return yaml_text({"items": list(items), "next_page_token": next_page_token})
        case "csv":
            return _csv([view.names, *([_cell(i, n) for n in view.names] for i in items)])
        case "wide":
            rows = [[_cell(item, name) for name in view.names] for item in items]
            return _grid(list(view.names), rows, [False] * len(view.names))
        case _:
            rows = [[_shown(item, column) for column in view.columns] for item in items]
            return _grid(
                [column.heading for column in view.columns],
                rows,
                [column.right for column in view.columns],
            )


def single(view: View, item: Shape, output: str) -> str:
    """One object in full: for people, one line a name."""
    match output:
        case "json":
            return json_text(item)
        case "yaml":
            return yaml_text(item)
        case "csv":
            return _csv([view.names, [_cell(item, name) for name in view.names]])
        case _:
            return _sheet(item, {column.path: column for column in view.columns}, output)


def json_text(value: Any) -> str:
    """JSON for programs and people: two spaces, names in contract order."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def json_line(value: Any) -> str:
    """One object on one line, for streams."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def yaml_text(value: Any) -> str:
    """YAML with names in contract order."""
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return text


def at(item: Any, path: str) -> Any:
    """The value at ``outer.inner`` of a shape; None where a step is absent."""
    if isinstance(item, dict) and path in item:
        return item[path]
    for step in path.split("."):
        if not isinstance(item, dict):
            return None
        item = item.get(step)
    return item


def text_of(value: Any) -> str:
    """A value as one cell: lists joined by ``;``, objects as JSON, absent as nothing."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case list() if all(not isinstance(part, dict | list) for part in value):
            return ";".join(text_of(part) for part in value)
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        case _:
            return str(value)


def _cell(item: Shape, name: str) -> str:
    return plain(text_of(at(item, name)))


def _shown(item: Shape, column: Column) -> str:
    value = at(item, column.path)
    if value is None or value == "" or value == []:
        return "-"
    return plain(column.show(value) if column.show else text_of(value))


def _grid(headings: list[str], rows: list[list[str]], right: list[bool]) -> str:
    widths = [max(_width(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    return "".join(_line(row, widths, right) for row in [headings, *rows])


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = []
    for cell, width, is_right in zip(cells, widths, right, strict=True):
        space = " " * (width - _width(cell))
        parts.append(space + cell if is_right else cell + space)
    return "  ".join(parts).rstrip() + "\n"


def _sheet(item: Shape, columns: dict[str, Column], output: str) -> str:
    lines = list(_sheet_rows(item, columns if output == "table" else {}))
    width = max((len(name) for name, _ in lines), default=0)
    return "".join(f"{name + ':':<{width + 1}} {value}".rstrip() + "\n" for name, value in lines)


def _sheet_rows(
    item: Shape, columns: dict[str, Column], prefix: str = ""
) -> Iterable[tuple[str, str]]:
    for name, value in item.items():
        path = f"{prefix}{name}"
        column = columns.get(path)
        if column is not None:
            yield plain(path), _shown({path: value}, column)
        elif isinstance(value, dict) and value:
            yield from _sheet_rows(value, columns, f"{path}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, part in enumerate(value):
                yield from _sheet_rows(part, columns, f"{path}[{index}].")
        elif value is None or value in ("", [], {}):
            yield plain(path), "-"
        else:
            yield plain(path), plain(text_of(value))


def _csv(rows: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1
        for c in text
    )
