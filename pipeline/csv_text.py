"""CSV text: whether its commas, quotation marks and characters are in order.

Arrow takes what it can make of any text. Where a quotation mark isn't closed, or has a backslash
before it instead of being doubled, that is fewer rows, and values that nobody wrote.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from pipeline.errors import UsageError

_QUOTED = re.compile(rb'"[^"]*"')
_HEADER_BYTES = 2**16
_LENGTH = Lock()


def check_text(file: Any, shown: str) -> tuple[str, ...]:
    """Return a line where an open CSV file is not UTF-8; errors call it `shown`.

    Raises:
        UsageError: its columns are not parted by commas, or have names that are not UTF-8; its rows
            don't all have a value for each; or a quotation mark is not closed, or not doubled
            within a value.
    """
    _check_commas(file, shown)
    try:
        _check_rows(file, shown, "strict")
    except UnicodeDecodeError:
        _check_rows(file, shown, "surrogateescape")
        return (
            f"{shown} is not in UTF-8: a row whose prompt isn't is rejected, and a label has "
            "\ufffd for what isn't; save it as UTF-8",
        )
    return ()


def _check_commas(file: Any, shown: str) -> None:
    file.seek(0)
    unquoted = _QUOTED.sub(b'""', file.read(_HEADER_BYTES))
    header = next(filter(None, re.split(rb"[\r\n]", unquoted)), b"")
    parted = next((mark for mark in (b";", b"\t", b"|") if mark in header), None)
    if parted and b"," not in header:
        raise UsageError(f"{shown}: its columns are parted by {parted.decode()!r}; expected commas")


def _check_rows(file: Any, shown: str, errors: str) -> None:
    """Raise where rows are not in order, as Python's parser has it, one at a time."""
    file.seek(0)
    text = io.TextIOWrapper(file, "utf-8-sig", errors, newline="")
    rows = csv.reader(text, strict=True)
    width, line = 0, 1
    try:
        with _any_length():
            for row in rows:
                if len(row) != width and row:  # a blank line is no row
                    if width:
                        raise UsageError(f"{shown}: line {line} {_say_ragged(len(row), width)}")
                    _check_names(row, shown)
                    width = len(row)
                line = rows.line_num + 1
    except csv.Error as error:
        seen = f" (read to line {rows.line_num})" if rows.line_num > line else ""
        raise UsageError(
            f"{shown}: line {line}: a quotation mark opens in it that none before a comma or a "
            f'line\'s end closes{seen}; close it, and double those within a value ("", not \\")'
        ) from error
    finally:
        text.detach()


@contextmanager
def _any_length() -> Generator[None]:
    """Let values have any length. The limit is the process's, and threads read files."""
    with _LENGTH:
        limit = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(limit)


def _check_names(names: Sequence[str], shown: str) -> None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{shown}: its header is not in UTF-8; save it as UTF-8") from error


def _say_ragged(got: int, expected: int) -> str:
    few, many = "a missing value needs its comma, too", "quote values that hold commas"
    return f"has {got} values, expected {expected}; {few if got < expected else many}"
