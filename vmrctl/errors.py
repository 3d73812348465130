"""What a command ends with when it does not succeed, and how that is said.

Every refusal becomes one ``Failure``: a sentence, the field and value, the remedy, an exit code.
With ``-o json`` it is the object ``{"problem": {...}}`` on standard error.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vmrctl.output import plain

if TYPE_CHECKING:
    from vmreplica.core.problems import Problem

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_REFUSED = 4
EXIT_UNAVAILABLE = 6
EXIT_FAULTS_FOUND = 8
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141


class Failure(Exception):
    """The end of a command that did not succeed.

    :param exit_code: what the process ends with.
    :param details: further members of the JSON problem (``cap``, ``node``, ``epoch``).
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        exit_code: int,
        grpc_code: str,
        field: str = "",
        value: str = "",
        remedy: str = "",
        retryable: bool = False,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.exit_code = exit_code
        self.grpc_code = grpc_code
        self.field = field
        self.value = value
        self.remedy = remedy
        self.retryable = retryable
        self.details = details or {}

    def shape(self) -> dict[str, Any]:
        """The JSON form of the problem."""
        return {
            "reason": self.reason,
            "message": self.message,
            "field": self.field or None,
            "value": self.value or None,
            "remedy": self.remedy or None,
            "retryable": self.retryable,
            "grpc_code": self.grpc_code,
            **self.details,
        }


def usage(message: str, *, field: str = "", value: str = "", remedy: str = "") -> Failure:
    """A command line that cannot be understood: exit code 2."""
    return Failure(
        "BAD_FIELD",
        message,
        exit_code=EXIT_USAGE,
        grpc_code="INVALID_ARGUMENT",
        field=field,
        value=value,
        remedy=remedy,
    )


def arrives_later(name: str, remedy: str = "") -> Failure:
    """A verb or flag that is named in the contract but not part of this version: exit code 2."""
    return Failure(
        "UNIMPLEMENTED",
        f"{name} arrives later: this version does not have it.",
        exit_code=EXIT_USAGE,
        grpc_code="UNIMPLEMENTED",
        field=name,
        remedy=remedy or "vmrctl --help shows what is there.",
    )


def timed_out(message: str, remedy: str = "") -> Failure:
    """We stopped waiting; the work itself goes on: exit code 6."""
    return Failure(
        "TIMED_OUT",
        message,
        exit_code=EXIT_UNAVAILABLE,
        grpc_code="DEADLINE_EXCEEDED",
        remedy=remedy,
        retryable=True,
    )


def of_problem(problem: Problem) -> Failure:
    """A server's (or the shared kernel's) problem as the end of this command."""
    extra = {"cap": problem.cap, "node": problem.node, "epoch": problem.epoch}
    return Failure(
        problem.reason.value,
        problem.message,
        exit_code=problem.exit_code,
        grpc_code=problem.grpc_code,
        field=problem.field,
        value=problem.value,
        remedy=problem.remedy,
        retryable=problem.retryable,
        details={key: value for key, value in extra.items() if value},
    )


def rendered(failure: Failure, output: str) -> str:
    """The text for standard error, without a final newline."""
    if output == "json":
        return json.dumps({"problem": failure.shape()}, indent=2, ensure_ascii=False)
    if output == "yaml":
        from vmrctl.output import yaml_text

        return yaml_text({"problem": failure.shape()}).rstrip("\n")
    lines = [f"Error: {plain(failure.message)} [{failure.reason}]"]
    if failure.field:
        suffix = f": {plain(failure.value)}" if failure.value else ""
        lines.append(f"  {plain(failure.field)}{suffix}")
    elif failure.value:
        lines.append(f"  {plain(failure.value)}")
    if failure.remedy:
        lines.append(f"Next: {plain(failure.remedy)}")
    return "\n".join(lines)
