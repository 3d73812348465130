"""How nouns and verbs are declared: the options that every verb has, and lazy loading.

A noun's module is imported when the noun is used, so that ``--help`` and completion stay quick.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import click

from vmrctl import later
from vmrctl.completion import complete_contexts
from vmrctl.errors import arrives_later, usage
from vmrctl.output import FORMATS
from vmrctl.session import OPTIONS_KEY, Options, Session
from vmrctl.values import DURATION

Callback = Callable[..., int | None]


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    given = ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE
    if given:
        options: Options = ctx.meta.setdefault(OPTIONS_KEY, Options())
        setattr(options, param.name or "", value)


def everywhere_options() -> list[click.Option]:
    """Fresh instances of the options that the root, every noun and every verb accept."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _remember}
    return [
        click.Option(
            ["--endpoint", "--broker", "endpoint"],
            metavar="HOST:PORT",
            help="The cluster's client access point, or a standalone node.",
            **shared,
        ),
        click.Option(
            ["--context"],
            metavar="NAME",
            help="An entry of ~/.config/vmrctl/config.yaml.",
            shell_complete=complete_contexts,
            **shared,
        ),
        click.Option(
            ["-o", "--output"],
            type=click.Choice(FORMATS),
            help="How results are printed (table).",
            **shared,
        ),
        click.Option(
            ["--wait"], is_flag=True, help="Return when the work is done, not accepted.", **shared
        ),
        click.Option(
            ["--timeout"],
            type=DURATION,
            metavar="DURATION",
            help="How long --wait waits (10m).",
            **shared,
        ),
        click.Option(["--yes"], is_flag=True, help="Answer yes to every question.", **shared),
        click.Option(
            ["-q", "--quiet"], is_flag=True, help="No progress and no confirmations.", **shared
        ),
    ]


class _Everywhere(click.Command):
    """A command whose shared options stand in a section of their own in the help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Own options first, the shared ones behind them."""
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                is_shared = param.callback is _remember
                (shared if is_shared else own).append(record)
        for title, records in (("Options", own), ("Everywhere", shared)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Verb(_Everywhere):
    """One verb: its options, the shared ones, and examples that the documentation shows.

    :param examples: command lines that work, shown in the help and in the documentation.
    """

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.extend(everywhere_options())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{' ' * formatter.current_indent}{example}\n")


class Noun(_Everywhere, click.Group):
    """A noun with its verbs. Verbs of later versions are refused with a sentence."""

    def __init__(self, name: str, *, path: str = "", **kwargs: Any) -> None:
        kwargs.setdefault("subcommand_metavar", "VERB [ARGS]...")
        super().__init__(name, **kwargs)
        self.path = path or name
        self.params.extend(everywhere_options())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options, then the verbs."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say why there is none."""
        if args and self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            if args[0] in later.VERBS.get(self.path, ()):
                raise arrives_later(
                    f"vmrctl {self.path} {args[0]}", f"vmrctl {self.path} --help shows its verbs."
                )
            raise usage(
                f"vmrctl {self.path} has no verb {args[0]!r}.",
                field="verb",
                value=args[0],
                remedy=f"Verbs: {', '.join(self.list_commands(ctx))}.",
            )
        return super().resolve_command(ctx, args)


class Root(Noun):
    """The root: nouns by name, each loaded from ``vmrctl.commands`` when it is used."""

    def __init__(self, nouns: dict[str, str], **kwargs: Any) -> None:
        super().__init__("vmrctl", subcommand_metavar="NOUN VERB [ARGS]...", **kwargs)
        self._nouns = nouns

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All nouns, in the order in which they are declared."""
        return list(self._nouns)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one noun."""
        if cmd_name not in self._nouns:
            return None
        module = importlib.import_module(f"vmrctl.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The nouns with their sentences, without loading them."""
        with formatter.section("Nouns"):
            formatter.write_dl(list(self._nouns.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the noun, or say why there is none."""
        if args and args[0] not in self._nouns and not ctx.resilient_parsing:
            if args[0] in later.NOUNS:
                raise arrives_later(f"vmrctl {args[0]}")
            raise usage(
                f"vmrctl has no noun {args[0]!r}.",
                field="noun",
                value=args[0],
                remedy=f"Nouns: {', '.join(self._nouns)}.",
            )
        return click.Group.resolve_command(self, ctx, args)


def with_session(callback: Callback) -> Callable[..., int | None]:
    """Give the callback the session of this run as its first argument."""

    @functools.wraps(callback)
    def run(*args: Any, **kwargs: Any) -> int | None:
        ctx = click.get_current_context()
        session = Session(ctx.meta.get(OPTIONS_KEY) or Options())
        try:
            result = callback(session, *args, **kwargs)
        except KeyboardInterrupt:
            # Not closed: closing a channel whose call was interrupted may wait for ever.
            raise
        except BaseException:
            session.close()
            raise
        session.close()
        return result

    return run


def verb(noun: click.Group, name: str, *examples: str) -> Callable[[Callback], Verb]:
    """Declare a verb of ``noun``; the docstring's text is its help."""

    def declare(callback: Callback) -> Verb:
        params = list(reversed(getattr(callback, "__click_params__", [])))
        command = Verb(
            name,
            callback=with_session(callback),
            params=params,
            help=callback.__doc__,
            examples=examples,
        )
        noun.add_command(command)
        return command

    return declare


def later_flag(flag: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback that refuses a flag of a later version when it is used."""

    def refuse(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value not in (None, False, ()) and not ctx.resilient_parsing:
            raise arrives_later(f"{flag} of {ctx.command_path}")

    return refuse
