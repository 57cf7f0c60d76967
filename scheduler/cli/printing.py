"""How answers are printed: tables for people, JSON and YAML for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import rich.console
import rich.table
import rich.text
import typer
import yaml


class Output(StrEnum):
    """Forms of an answer."""

    table = "table"
    json = "json"
    yaml = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="table for people; json and yaml for programs")]


def emit(answer: Any, output: Output) -> None:
    """Print a program's answer."""
    if output is Output.yaml:
        sys.stdout.write(yaml.safe_dump(answer, sort_keys=False, allow_unicode=True))
    else:
        sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")


def console(*, stderr: bool = False) -> rich.console.Console:
    """A console that never cuts what a pipe or a file receives."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 100_000
    return rich.console.Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print rows under headings, in the plain form of kubectl's."""
    made = rich.table.Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(rich.text.Text("-" if cell is None or cell == "" else str(cell)) for cell in row))
    console().print(made)


def say(text: str) -> None:
    """Print a line for people."""
    sys.stdout.write(text + "\n")


def warn(text: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(text + "\n")
