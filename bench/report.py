"""The report of a run: ``build/bench/report.json`` and the document made from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import Machine
from bench.result import Result

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class Report:
    """Everything that was measured, and what could not be."""

    machine: Machine
    quick: bool
    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def missed(self) -> list[Result]:
        """Results below their target."""
        return [result for result in self.results if not result.met]

    @property
    def ok(self) -> bool:
        """All measured, all targets met."""
        return bool(self.results) and not self.failures and not self.missed

    def verdict(self) -> str:
        """One line."""
        words = [f"bench: {len(self.results)} rows measured in {self.seconds:.0f} s"]
        if self.missed:
            listed = ", ".join(
                f"{r.name} {_times(r.ratio)} of {_times(r.target)}" for r in self.missed
            )
            words.append(f"{len(self.missed)} MISSED ({listed})")
        elif self.results:
            words.append("all targets met")
        if self.failures:
            words.append(f"NOT MEASURED: {', '.join(self.failures)}")
        if self.quick:
            words.append("a quick run: few and small samples")
        return "; ".join(words)

    def to_json(self) -> str:
        """``report.json``."""
        tree = {
            "ok": self.ok,
            "verdict": self.verdict(),
            "quick": self.quick,
            "seconds": round(self.seconds),
            "machine": self.machine.facts,
            "versions": self.machine.versions,
            "rows": [_row(result) for result in self.results],
            "not_measured": self.failures,
        }
        return json.dumps(tree, indent=1) + "\n"

    def to_markdown(self) -> str:
        """``benchmarks.md``: everything of the report, for people."""
        parts = [_HEAD, f"**{self.verdict()}**\n", self._machine(), self._table()]
        parts += [self._misses()]
        parts += [_section(result) for result in self.results]
        text = "\n".join(part for part in parts if part)
        # Commands are shown as run from the checkout, wherever that lies.
        return text.replace(f"{_ROOT}/", "")

    def write(self, report: Path, document: Path) -> None:
        """Both files."""
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(self.to_json(), "utf-8")
        document.parent.mkdir(parents=True, exist_ok=True)
        document.write_text(self.to_markdown(), "utf-8")

    def _machine(self) -> str:
        facts = [f"- {name}: {value}" for name, value in self.machine.facts.items()]
        listed = ", ".join(f"{name} {text}" for name, text in self.machine.versions.items())
        return "\n".join([*facts, f"- versions: {listed}", ""])

    def _table(self) -> str:
        head = "| row | unit | ours | peer | ratio | target | |\n|---|---|---|---|---|---|---|"
        lines = [head]
        for r in self.results:
            against = f"{_number(r.peer_value)} ({r.peer_name})" if r.peer_value else "–"
            if r.budget is not None:
                against = f"budget {_number(r.budget)}" + (f"; {against}" if r.peer else "")
            kind = "worst" if r.worst else "median"
            lines.append(
                f"| {r.name} | {r.unit}, {kind} of {len(r.ours)} | {_number(r.ours_value)} "
                f"| {against} | {_times(r.ratio)} | {_times(r.target)} "
                f"| {'met' if r.met else '**MISSED**'} |"
            )
        lines += [f"| {name} | – | – | – | – | – | **NOT MEASURED** |" for name in self.failures]
        return "\n".join(lines) + "\n"

    def _misses(self) -> str:
        if not self.missed and not self.failures:
            return ""
        lines = ["## Missed or not measured\n"]
        for r in self.missed:
            against = "its budget" if r.budget is not None else r.peer_name
            lines.append(
                f"- **{r.name}** ({r.what}): {_number(r.ours_value)} {r.unit} is "
                f"{_times(r.ratio)} of {against}; wanted is at least {_times(r.target)}."
            )
        lines += [f"- **{name}** was not measured: {why}" for name, why in self.failures.items()]
        return "\n".join(lines) + "\n"


_HEAD = """# Benchmarks

Written by `make bench`; do not edit. Each row is measured side by side with its peer in one run on
one machine, in turns (ours, peer, ours, peer, …), after the peer has been tuned: the best of the
settings shown. A ratio above 1 is better than the peer. Where a row has a budget, the ratio is
against the budget.
"""


def _row(r: Result) -> dict[str, Any]:
    return {
        "name": r.name,
        "what": r.what,
        "unit": r.unit,
        "ours": r.ours_value,
        "peer": r.peer_value,
        "peer_name": r.peer_name,
        "budget": r.budget,
        "ratio": round(r.ratio, 4),
        "target": r.target,
        "met": r.met,
        "summed_up_by": "worst" if r.worst else "median",
        "runs": {"ours": list(r.ours), "peer": list(r.peer)},
        "pair_ratios": [round(x, 4) for x in r.pair_ratios()],
        "commands": list(r.commands),
        "tried": [{"setting": t.setting, "value": t.value} for t in r.tried],
        "notes": list(r.notes),
        "details": r.details,
    }


def _section(r: Result) -> str:
    lines = [f"## {r.name}\n", r.what + "\n"]
    lines.append(f"- ours, {r.unit}: {_list(r.ours)}")
    if r.peer:
        lines.append(f"- {r.peer_name}, {r.unit}: {_list(r.peer)}")
    if r.pair_ratios():
        lines.append(f"- ratio within each pair: {_list(r.pair_ratios())}")
    if r.tried:
        tried = "; ".join(f"`{t.setting}` {_number(t.value)}" for t in r.tried)
        lines.append(f"- settings of the peer tried before, {r.unit}: {tried}")
    for name, value in r.details.items():
        lines.append(f"- {name}: {_plain(value)}")
    lines += [f"- {note}" for note in r.notes]
    if r.commands:
        lines += ["", "```", *r.commands, "```"]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(inner) for inner in value)
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _times(value: float) -> str:
    return f"{value:.2f}×"


def _list(values: Any) -> str:
    return ", ".join(_number(value) for value in values)
