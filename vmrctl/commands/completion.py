"""``vmrctl completion``: the script that a shell reads to complete verbs, flags and names."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

from vmrctl.completion import VARIABLE
from vmrctl.errors import Failure
from vmrctl.session import Session
from vmrctl.verbs import Verb, with_session


def print_script(session: Session, shell: str) -> None:
    """Print the completion script of a shell.

    It completes VM names, nodes and contexts by asking the server for at most a second.
    """
    kind: Any = get_completion_class(shell)
    if kind is None:
        raise Failure("INTERNAL", f"No completion for {shell}.", exit_code=1, grpc_code="INTERNAL")
    root = click.get_current_context().find_root().command
    session.write(kind(root, {}, "vmrctl", VARIABLE).source() + "\n")


command = Verb(
    "completion",
    callback=with_session(print_script),
    help=print_script.__doc__,
    examples=(
        "vmrctl completion bash > /etc/bash_completion.d/vmrctl",
        "vmrctl completion zsh > ~/.zfunc/_vmrctl",
    ),
    params=[click.Argument(["shell"], type=click.Choice(["bash", "zsh"]))],
)
