"""`python -m …` in the process of the tests: what it prints, without the seconds that imports take."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from runpy import run_module


def run_main(module: str, *arguments: str) -> str:
    """Run a module as `python -m` does, and return its standard output; its exit status must be 0."""
    output, argv = StringIO(), sys.argv
    sys.argv = [module, *arguments]
    try:
        with redirect_stdout(output), redirect_stderr(StringIO()):
            run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, (module, *arguments)
    finally:
        sys.argv = argv
    return output.getvalue()
