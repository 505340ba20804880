"""The command `bayeslaw`: from runs to a fit, predictions, plans, the next runs, and the checks."""

from __future__ import annotations

import sys
import warnings

import typer

from bayeslaw.cli_checks import check, evaluate, evaluate_plans, learning_curve
from bayeslaw.cli_fits import compare, fit, predict, quickstart, watch
from bayeslaw.cli_plans import autopilot, plan, suggest
from bayeslaw.errors import BayeslawError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Bayesian scaling laws for iterative magnitude pruning: fit runs, predict networks, plan where to start.",
)
for command in (
    *(quickstart, fit, predict, plan, suggest, autopilot, watch, compare),
    *(evaluate, evaluate_plans, check, learning_curve),
):
    app.command()(command)


def main() -> None:
    """Run the command; bad input ends it with one message and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        app()
    except (BayeslawError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
