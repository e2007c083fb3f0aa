"""The `runoff` command as somebody types it."""

from __future__ import annotations

import os
from subprocess import CompletedProcess

from click.testing import CliRunner

from runoff.cli import main


def runoff(*arguments: object, **environment: str) -> CompletedProcess[str]:
    """Run a command, in this process: to start another one takes longer than most of what it is to do.

    Args:
        arguments: as they are typed.
        environment: variables that it sees, beside those that are not Runoff's own.
    """
    typed = [*map(str, arguments)]
    hidden = dict.fromkeys(name for name in os.environ if name.startswith("RUNOFF_"))
    done = CliRunner().invoke(main, typed, env={**hidden, **environment})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return CompletedProcess(["runoff", *typed], done.exit_code, done.stdout, done.stderr)
