"""Printing: results go to standard output, progress and errors to standard error."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
NUMBER_COLUMNS = {"seconds", "parameters", "bytes", "p50, batch 1"}
ArtifactDir = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A directory that a stage has written.")]


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows under titles; without a terminal, 200 columns wide, so that paths are not wrapped."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title in NUMBER_COLUMNS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False, width=None if out.is_terminal else 200).print(table)


def short(path: Path) -> str:
    """Returns a path relative to the working directory if it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
