"""Prints results to standard output (`out`), and progress and errors to standard error (`err`)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
RIGHT_ALIGNED_TITLES = {"seconds", "parameters", "bytes", "p50, batch 1"}  # of columns of numbers
PIPE_WIDTH_CHARACTERS = 200  # of a table without a terminal, so that paths are not wrapped
ArtifactDir = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A directory that a stage has written.")]


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows of cells under the titles of their columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title in RIGHT_ALIGNED_TITLES else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False, width=None if out.is_terminal else PIPE_WIDTH_CHARACTERS).print(table)


def shorten_path(path: Path) -> str:
    """Returns a path relative to the working directory if it lies below it, and otherwise unchanged."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
