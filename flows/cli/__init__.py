"""Command line of a flow: its parameters are the options, its docstring is the help."""

from flows.cli.arguments import parser_of
from flows.cli.main import main

__all__ = ["main", "parser_of"]
