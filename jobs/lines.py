"""Lines of cells in columns, which no console cuts: names and paths are there to be copied."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

Line = tuple[str, ...]
"""A line's cells."""


def align(lines: Sequence[Line]) -> str:
    """Return lines whose cells, but for each line's last, are padded into columns."""
    widths = dict[int, int]()
    for line in lines:
        for place, cell in enumerate(line[:-1]):
            widths[place] = max(len(cell), widths.get(place, 0))
    padded = (
        [*(cell.ljust(widths[place]) for place, cell in enumerate(line[:-1])), line[-1]]
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def print_whole(console: Console, lines: Sequence[Line]) -> None:
    """Print lines whole, however narrow the console."""
    console.print(align(lines), highlight=False, markup=False, soft_wrap=True)
