"""The benchmark's arithmetic: ratios, misses that are shown, outages as a watcher saw them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.machine import Machine
from bench.outage import longest_gap, since_kill
from bench.report import Report
from bench.result import Result


def result(**changes: Any) -> Result:
    given: dict[str, Any] = {
        "name": "row",
        "what": "what it is",
        "unit": "MB/s",
        "higher_is_better": True,
        "ours": (100.0, 300.0, 200.0),
        "peer": (100.0, 100.0, 400.0),
        "peer_name": "peer",
        "target": 1.0,
    }
    return Result(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({}, 2.0),
        ({"higher_is_better": False}, 0.5),
        ({"higher_is_better": False, "worst": True}, 400 / 300),
        ({"worst": True}, 1.0),
        ({"peer": (), "budget": 400.0, "higher_is_better": False}, 2.0),
        ({"peer": (), "budget": 250.0, "higher_is_better": False, "worst": True}, 250 / 300),
        ({"budget": 50.0}, 4.0),
    ],
)
def test_above_one_is_better(changes: dict[str, Any], ratio: float) -> None:
    assert result(**changes).ratio == pytest.approx(ratio)
    assert result(**changes).met == (ratio >= 1)


def test_pairs() -> None:
    assert result().pair_ratios() == [1.0, 3.0, 0.5]
    assert result(higher_is_better=False).pair_ratios() == [1.0, 1 / 3, 2.0]
    assert result(peer=(1.0,)).pair_ratios() == []


def test_a_miss_and_a_failure_are_in_every_shape() -> None:
    report = Report(Machine({"date": "today"}, {"x": "1"}), quick=True)
    report.results = [result(), result(name="slow", target=2.5)]
    report.failures = {"gone": "BenchFailed: no such program"}
    assert not report.ok
    assert "1 MISSED (slow 2.00× of 2.50×)" in report.verdict()
    assert "NOT MEASURED: gone" in report.verdict()
    tree = json.loads(report.to_json())
    assert [row["met"] for row in tree["rows"]] == [True, False]
    assert tree["not_measured"] == report.failures and tree["ok"] is False
    text = report.to_markdown()
    assert "| slow |" in text and "**MISSED**" in text
    assert "**NOT MEASURED**" in text and "no such program" in text


def test_an_empty_report_is_not_ok() -> None:
    assert not Report(Machine(), quick=False).ok


def answers(*pairs: tuple[float, bool]) -> list[dict[str, Any]]:
    return [{"asked": at, "answered": at + 0.01, "ok": ok} for at, ok in pairs]


def test_an_outage_ends_with_the_first_answer_after_a_failure() -> None:
    seen = answers((9.0, False), (9.9, True), (10.1, True), (10.2, False), (13.0, True))
    assert since_kill(seen, 10.0) == pytest.approx(3.01)
    assert since_kill(seen[:4], 10.0) is None, "it lasts"
    assert since_kill(seen[:3], 10.0) is None, "it has not been noticed"


def test_the_longest_gap_begins_before_the_interval() -> None:
    seen = answers((9.0, True), (9.9, True), (10.3, True), (10.35, False), (10.4, True))
    assert longest_gap(seen, 10.0, 11.0) == pytest.approx(0.4)
