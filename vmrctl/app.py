"""The root of the command line, and how every run ends: with an exit code and, if need be, one
problem in plain words."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from vmrctl.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_PIPE_CLOSED,
    EXIT_USAGE,
    Failure,
    of_problem,
    rendered,
    usage,
)
from vmrctl.output import FORMATS
from vmrctl.session import ReaderGone
from vmrctl.verbs import Root
from vmreplica.core.problems import Problem

NOUNS = {
    "replication": "Protect virtual machines that run on this side.",
    "replica": "The copies that this side keeps.",
    "failover": "Turn a copy into a running machine.",
    "node": "The hosts of the cluster.",
    "broker": "The brokers behind the client access point.",
    "connection": "Check the way to another cluster.",
    "settings": "Settings of the whole cluster.",
    "operation": "Work that takes longer.",
    "events": "What happened, and what happens.",
    "store": "Check a storage location.",
    "cert": "Make and check certificates.",
    "version": "Versions of this command and of the server.",
    "completion": "Completion for bash and zsh.",
}

cli = Root(
    NOUNS,
    help="Replicate running virtual machines to another cluster, and bring them up there.",
    no_args_is_help=True,
)


def run(args: Sequence[str], *, is_process: bool = False) -> int:
    """Run one command line. :returns: the exit code.

    :param is_process: whether the whole process is this run, and may end at Ctrl-C without return.
    """
    try:
        result = cli.main(args=list(args), prog_name="vmrctl", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.UsageError as error:
        return _ended(_of_usage(error), args)
    except Failure as failure:
        return _ended(failure, args)
    except Problem as problem:
        return _ended(of_problem(problem), args)
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("Interrupted.\n")
        if is_process:
            # While the traceback still holds the channel: to let go of one whose call was
            # interrupted may wait for ever.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except ReaderGone:
        # Whoever read us has gone; the interpreter must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except Exception as error:  # noqa: BLE001 - a person must never meet a traceback
        return _bug(error, args)
    return result if isinstance(result, int) else 0


def _of_usage(error: click.UsageError) -> Failure:
    path = error.ctx.command_path if error.ctx else "vmrctl"
    param = getattr(error, "param", None)
    option = getattr(error, "option_name", None)
    field = option or (
        param.get_error_hint(error.ctx).replace("'", "") if param is not None else ""
    )
    message = error.format_message()
    return usage(
        message if message.endswith(".") else f"{message}.", field=field, remedy=f"{path} --help"
    )


def _ended(failure: Failure, args: Sequence[str]) -> int:
    sys.stderr.write(rendered(failure, _output_of(args)) + "\n")
    return failure.exit_code


def _bug(error: Exception, args: Sequence[str]) -> int:
    if os.environ.get("VMRCTL_DEBUG"):
        traceback.print_exc()
    sentence = str(error) or "no further word"
    failure = Failure(
        "INTERNAL",
        f"vmrctl met a bug of its own: {type(error).__name__}: {sentence}.",
        exit_code=EXIT_BUG,
        grpc_code="INTERNAL",
        remedy="Repeat with VMRCTL_DEBUG=1 and report what it prints.",
    )
    return _ended(failure, args)


def _output_of(args: Sequence[str]) -> str:
    """The format asked for, read before (and whether or not) the line could be parsed."""
    found = "table"
    for index, arg in enumerate(args):
        match arg:
            case "--":
                break
            case "-o" | "--output" if index + 1 < len(args):
                found = args[index + 1]
            case _ if arg.startswith("--output="):
                found = arg.removeprefix("--output=")
            case _ if arg.startswith("-o") and len(arg) > 2:
                found = arg.removeprefix("-o").removeprefix("=")
    return found if found in FORMATS else "table"
