"""The command that goes the whole way: a LLaVA and photos to a LLaVA of few tokens and a report."""

import sys
from dataclasses import asdict

from ..make.recipe import Recipe
from ..make.run import make
from ..util.alone import alone
from ..util.console import say
from ..util.errors import NotWritten
from .options.make import MakeCommand


def make_command(command: MakeCommand) -> None:
    """Makes, and says what the report says at its head."""
    fields = asdict(command)
    out = fields.pop("out")
    try:
        with alone(out):
            verdict = make(Recipe(**fields), out)
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. What was reached is saved; the same command goes on.\n")
        raise SystemExit(130) from None
    except NotWritten as error:
        raise ValueError(f"{error} What was done before is kept: make room, and the same command goes on.") from error
    say(f"\n{verdict.sentence}\n\nOpen {out / 'report.html'} in a browser.")
