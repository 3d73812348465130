"""One run of vmrctl: its options, its connection, and how it speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from vmrctl import output
from vmrctl.contexts import Target, resolve
from vmrctl.errors import usage
from vmrctl.output import Shape, View
from vmrctl.progress import Progress, progress_for

if TYPE_CHECKING:
    from vmrctl.client import Client

OPTIONS_KEY = "vmrctl.options"
DEFAULT_WAIT_MS = 600_000


@dataclass(slots=True)
class Options:
    """The options that every verb has. ``timeout`` in milliseconds."""

    endpoint: str | None = None
    context: str | None = None
    output: str = "table"
    wait: bool = False
    timeout: int = DEFAULT_WAIT_MS
    yes: bool = False
    quiet: bool = False


class ReaderGone(Exception):
    """Whoever read our output has closed the pipe: nothing is left to do."""


class Session:
    """What a verb works with."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._client: Client | None = None

    def target(self) -> Target:
        """Where this run connects to."""
        return resolve(
            endpoint=self.options.endpoint, context=self.options.context, environ=os.environ
        )

    @property
    def client(self) -> Client:
        """The connection, made at first use."""
        if self._client is None:
            from vmrctl.client import Client

            self._client = Client(self.target())
        return self._client

    def close(self) -> None:
        """Drop the connection, if there is one."""
        if self._client is not None:
            self._client.close()

    def show_list(self, view: View, items: Sequence[Shape]) -> None:
        """Print many objects."""
        self.write(output.listing(view, items, self.options.output))

    def show(self, view: View, item: Shape) -> None:
        """Print one object."""
        self.write(output.single(view, item, self.options.output))

    def done(self, shape: Shape, sentence: str) -> None:
        """Print what a write brought about: a sentence for people, the shape for programs."""
        if self.options.output in ("table", "wide"):
            if not self.options.quiet:
                self.write(output.plain(sentence) + "\n")
            return
        view = View("result", (), tuple(shape))
        self.write(output.single(view, shape, self.options.output))

    def write(self, text: str) -> None:
        """Print to standard output as it is. :raises ReaderGone:"""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise ReaderGone from error

    def progress(self, title: str) -> Progress:
        """Something to show progress with, fit for this terminal and these options."""
        return progress_for(
            title,
            sys.stderr,
            quiet=self.options.quiet,
            output=self.options.output,
            environ=os.environ,
        )

    def confirm(self, question: str) -> None:
        """Ask before something is destroyed. :raises Failure: without a yes."""
        if self.options.yes:
            return
        if not sys.stdin.isatty():
            raise usage(
                f"{question} This needs an answer, and there is nobody to ask.",
                field="--yes",
                remedy="Repeat with --yes.",
            )
        if not click.confirm(question, default=False, err=True):
            raise usage("Not confirmed: nothing was changed.", field="--yes")
