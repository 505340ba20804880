"""The command in this process: what tests of it share."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import warnings

import pytest

from bayeslaw.cli import main


def command(*arguments: object) -> tuple[int, str, str]:
    """Run `bayeslaw` in this process: exit code, standard output, standard error."""
    output, error = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(error),
    ):
        warnings.simplefilter("default")
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        patch.setattr(sys, "argv", ["bayeslaw", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue()), error.getvalue()
