"""Command line of a flow: its parameters are the options, its docstring is the help."""

from flows.cli.arguments import build_parser
from flows.cli.main import main

__all__ = ["build_parser", "main"]
