"""Forms of output, values as people type them, and progress: values only."""

from __future__ import annotations

import io
import json

import pytest

from vmrctl import output
from vmrctl.errors import Failure, rendered
from vmrctl.output import Column, View
from vmrctl.progress import Bar, Lines, Silent, Step, progress_for
from vmrctl.values import bytes_per_s, duration_ms, shown_bytes, shown_duration, time_ms

VIEW = View(
    "Thing",
    (Column("NAME", "name"), Column("SIZE", "size", shown_bytes, right=True), Column("IN", "a.b")),
    ("name", "size", "a", "tags"),
)
ITEMS = [
    {"name": "one", "size": 1536, "a": {"b": True}, "tags": ["x", "y"]},
    {"name": "日本", "size": 12, "a": None, "tags": []},
    {"name": "e\u0301vil\x1b[31m\u202e", "size": None, "a": {"b": False}, "tags": [{"k": 1}]},
]


def test_table() -> None:
    assert output.listing(VIEW, ITEMS, "table") == (
        "NAME                   SIZE  IN\n"
        "one                 1.5 KiB  true\n"
        "日本                   12 B  -\n"
        "e\u0301vil\\x1b[31m\\x202e        -  false\n"
    )


def test_wide_and_csv_have_every_name() -> None:
    wide = output.listing(VIEW, ITEMS[:1], "wide")
    assert wide == 'name  size  a           tags\none   1536  {"b":true}  x;y\n'
    assert output.listing(VIEW, ITEMS[:2], "csv") == (
        'name,size,a,tags\none,1536,"{""b"":true}",x;y\n日本,12,,\n'
    )
    assert output.listing(VIEW, [], "csv") == "name,size,a,tags\n"


def test_json_keeps_what_a_terminal_must_not_see() -> None:
    assert json.loads(output.listing(VIEW, ITEMS, "json")) == {
        "items": ITEMS,
        "next_page_token": "",
    }
    assert json.loads(output.single(VIEW, ITEMS[0], "json")) == ITEMS[0]


def test_a_single_object_is_a_sheet() -> None:
    item = {"name": "one", "size": 1536, "list": [{"k": 1}, {"k": 2}], "none": None, "in": {"x": 1}}
    assert output.single(VIEW, item, "table") == (
        "name:      one\nsize:      1.5 KiB\nlist[0].k: 1\nlist[1].k: 2\nnone:      -\nin.x:      1\n"
    )
    assert "size:      1536\n" in output.single(VIEW, item, "wide")
    assert output.single(VIEW, item, "csv") == "name,size,a,tags\none,1536,,\n"


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("5s", 5000), ("500ms", 500), ("5m", 300_000), ("1h30m", 5_400_000), ("2d", 172_800_000)],
)
def test_durations(text: str, milliseconds: int) -> None:
    assert duration_ms(text) == milliseconds
    assert duration_ms(shown_duration(milliseconds)) == milliseconds


@pytest.mark.parametrize("text", ["", "5", "s", "5x", "-5s", "5s ", "1.5h", "9" * 30 + "d"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration_ms(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10MiB/s", 10 * 2**20),
        ("100MB/s", 10**8),
        ("1Gbit/s", 125_000_000),
        ("1.5KiB", 1536),
        ("0", 0),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert bytes_per_s(text) == rate


@pytest.mark.parametrize(
    "text", ["", "fast", "10 parsec/s", "-1", "1e3", "9" * 20, "9" * 20 + "B", "10", "10/s"]
)
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        bytes_per_s(text)


def test_times() -> None:
    assert time_ms("1970-01-01T01:00:00.250+01:00") == 250
    assert time_ms("2026-11-23T04:00:00Z") == 1_795_406_400_000
    for text in ("2026-11-23", "2026-11-23T04:00:00", "2026-13-01T00:00:00Z", "now"):
        with pytest.raises(ValueError, match="time"):
            time_ms(text)


def test_sizes_people_read() -> None:
    shown = [shown_bytes(n) for n in (0, 1023, 1024, 5 * 2**30, 2**60)]
    assert shown == ["0 B", "1023 B", "1.0 KiB", "5.0 GiB", "1048576.0 TiB"]
    assert [shown_duration(n) for n in (0, 999, 1500, 61_000)] == ["0ms", "999ms", "1.5s", "1m1s"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_fits_its_surroundings() -> None:
    def kind(stream: io.StringIO, *, quiet: bool = False, form: str = "table", **env: str) -> type:
        return type(progress_for("t", stream, quiet=quiet, output=form, environ=env))

    assert kind(io.StringIO()) is Lines
    assert kind(io.StringIO(), form="json") is Silent
    assert kind(io.StringIO(), quiet=True) is Silent
    assert kind(Terminal()) is Bar
    assert kind(Terminal(), form="json") is Bar
    assert kind(Terminal(), quiet=True) is Silent
    assert kind(Terminal(), TERM="dumb") is Lines


def test_lines_say_a_thing_once() -> None:
    stream = io.StringIO()
    with Lines("copy", stream) as lines:
        for done in range(0, 101, 5):
            lines.show(Step("sending", done * 2**20, 100 * 2**20, "bytes"))
        lines.show(Step("checking\x1b[2J"))
        lines.show(Step("moving", 3, 8, "replicas"))
    said = stream.getvalue().splitlines()
    assert len(said) == 13
    assert said[5] == "copy: sending 50 % (50.0 MiB of 100.0 MiB)"
    assert said[-2:] == ["copy: checking\\x1b[2J", "copy: moving 37 % (3 of 8 replicas)"]


@pytest.mark.parametrize("colour", [True, False])
def test_the_bar_moves_and_knows_no_color(colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    with Bar("initial", stream, colour=colour) as bar:
        bar.show(Step("sending", 2**20, 2**21, "bytes"))
        bar.show(Step("sending", 2**21, 2**21, "bytes"))
    text = stream.getvalue()
    assert "initial" in text and "100%" in text and "2.0 MiB of 2.0 MiB" in text
    assert ("\x1b[38;" in text or "\x1b[3" in text) is colour


def test_problems_in_words_and_in_json() -> None:
    failure = Failure(
        "NO_SPACE", "Full\n\x1b[1m.", exit_code=7, grpc_code="RESOURCE_EXHAUSTED", value="/srv"
    )
    assert rendered(failure, "table") == "Error: Full\\x0a\\x1b[1m. [NO_SPACE]\n  /srv"
    assert json.loads(rendered(failure, "json"))["problem"] == {
        "reason": "NO_SPACE",
        "message": "Full\n\x1b[1m.",
        "field": None,
        "value": "/srv",
        "remedy": None,
        "retryable": False,
        "grpc_code": "RESOURCE_EXHAUSTED",
    }
