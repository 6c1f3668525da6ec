"""`python -m …` in the process of the tests: what it prints, without the seconds that imports take."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from runpy import run_module
from subprocess import CompletedProcess


def run_command(module: str, *arguments: str) -> CompletedProcess[str]:
    """Run a module as `python -m` does, and return its status and what it printed; its other errors are raised."""
    output, errors, argv, status = StringIO(), StringIO(), sys.argv, 0
    sys.argv = [module, *arguments]
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
        if isinstance(status, str):  # as Python does
            print(status, file=errors)
            status = 1
    finally:
        sys.argv = argv
    return CompletedProcess([module, *arguments], status, output.getvalue(), errors.getvalue())


def run_main(module: str, *arguments: str) -> str:
    """Run a module as `python -m` does, and return its standard output; its exit status must be 0."""
    done = run_command(module, *arguments)
    assert not done.returncode, done
    return done.stdout
