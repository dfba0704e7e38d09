"""Print tables to a terminal or a log file."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 200  # characters per line, when the output is not a terminal


def open_console() -> "Console":
    """A console for the terminal. Without one, lines are longer, so that tables in a log file are not cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH)
