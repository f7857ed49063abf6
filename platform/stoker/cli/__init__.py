"""The command ``stoker``: one module a subcommand, imported when it is chosen.

A subcommand is one row of ``commands.COMMANDS`` and one module with a docstring (its ``--help``),
``add_arguments(parser)`` and ``run(given)``. ``jobs/<name>.py`` calls the same code.
"""

from stoker.cli.main import main

__all__ = ["main"]
