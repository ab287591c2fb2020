"""Cells: one value of a prompt table becomes a value of a request, or the problem with it.

Tables come from many tools, so a number may be any integer or decimal type, a float, or text (CSV);
what counts is that it is whole where a whole number is asked for. Nothing here raises on what a
cell holds: a bad cell is data.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from pipeline.request import normalize_text

MAX_ID_CHARS = 256
MAX_DIGITS = 300
"""Digits of the longest number that is still read as one: a float can hold it."""
SHOWN_CHARS = 40
_EXACT_FLOAT = 2**53

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class Problem(NamedTuple):
    """What is wrong with one cell."""

    column: str
    got: str
    expected: str
    hint: str = ""

    @property
    def text(self) -> str:
        """The reason as a person reads it."""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.column}: got {self.got}, expected {self.expected}{hint}"

    @property
    def kind(self) -> str:
        """What it has in common with the same problem in other rows."""
        return f"{self.column}: expected {self.expected}"


@dataclass(frozen=True)
class Moment:
    """A cell of a date, time or duration column: neither text nor a number."""

    text: str
    kind: str
    """Its column's type, as Arrow names it: `timestamp[us]`."""
    seconds: Decimal | None = None
    """How long it is, if it is a duration."""


class NarrowFloat(float):
    """A float of fewer than 64 bits, where those no longer tell whole numbers apart."""

    limit: int
    """The first whole number that is also what the next one is rounded to."""


class SingleFloat(NarrowFloat):
    """A float of 32 bits."""

    limit = 2**24


class HalfFloat(NarrowFloat):
    """A float of 16 bits."""

    limit = 2**11


def find_lost_digits(number: float) -> str:
    """Return why a whole float may stand for another number than was meant; else nothing.

    Floats count every whole number up to a limit, which the next one is rounded to.
    """
    limit = number.limit if isinstance(number, NarrowFloat) else _EXACT_FLOAT
    return f"floats lose digits from {limit} on" if abs(number) >= limit else ""


def parse_number(cell: Any) -> int | float | str | None:
    """Return a cell's number, exact where it is whole; None where missing; else what it is."""
    if type(cell) is int:
        return cell if abs(cell) < 10**MAX_DIGITS else show(cell)
    if cell is None or isinstance(cell, float):
        return cell
    if isinstance(cell, bytes):
        text = cell.decode("utf-8", "replace")
        if _CONTROL.search(text) or "\ufffd" in text:
            return show(cell)
        cell = text
    if isinstance(cell, str):
        text = cell.strip()
        if not text:
            return None
        if _NOT_FINITE.fullmatch(text):
            return float(text)
        if len(text) > 64 or not _NUMBER.fullmatch(text):
            return show(cell)
        cell = Decimal(text)
    if not isinstance(cell, Decimal):
        return show(cell)
    if cell.is_finite() and cell.adjusted() < 64 and cell == cell.to_integral_value():
        return int(cell)
    return float(cell)


def read_text(cell: Any, column: str, limit: int) -> tuple[str | None, Problem | None]:
    """Return a cell's text, normalized, and its problem. Null is missing: None, None.

    Text over `limit` characters is returned cut, beside its problem. Control characters other than
    tab and line ends are a problem: no tokenizer, MP4 or web page has a use for them.
    """
    if cell is None:
        return None, None
    if type(cell) is str and len(cell) <= limit and cell.isascii() and cell.isprintable():
        return cell.strip(), None
    if isinstance(cell, bytes):
        try:
            cell = cell.decode("utf-8")
        except UnicodeDecodeError as error:
            return None, Problem(column, f"bytes that are not UTF-8 at {error.start}", "text")
    if not isinstance(cell, str):
        return None, Problem(column, show(cell), "text")
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError as error:
        got = f"half a character (a lone surrogate) at {error.start}"
        return None, Problem(column, got, "text")
    text = normalize_text(cell)
    control = _CONTROL.search(text)
    if control:
        got = f"control character U+{ord(control[0]):04X} at {control.start()}"
        return None, Problem(column, got, "text", "take it out")
    if len(text) > limit:
        expected = f"at most {limit} characters"
        hint = f"cut {len(text) - limit} characters"
        return text[:limit], Problem(column, f"{len(text)} characters", expected, hint)
    return text, None


def read_id(cell: Any) -> tuple[str | None, Problem | None]:
    """Return a cell's id as text and its problem. Null, NaN and blank text are no id."""
    if isinstance(cell, float | Decimal):
        number = parse_number(cell)
        if isinstance(number, float):
            lost = isinstance(cell, float) and number.is_integer() and find_lost_digits(number)
            if lost:
                hint = f"{lost}; make the column integer or text"
                got = f"the float {show(number)}"
                return None, Problem("id", got, "text or an exact number", hint)
            number = int(cell) if number.is_integer() else str(cell)
        cell = None if math.isnan(cell) else number
    elif isinstance(cell, bool):
        cell = str(cell).lower()
    elif isinstance(cell, Moment):
        if cell.seconds is not None:
            return None, Problem("id", show(cell), "text or a number")
        cell = cell.text
    if cell is not None and not isinstance(cell, str | bytes | list | dict):
        cell = str(cell)
    text, problem = read_text(cell, "id", MAX_ID_CHARS)
    return text or None, problem


def is_invisible(text: str) -> bool:
    """Return whether text has no character that shows: a zero-width space, a byte-order mark."""
    return all(unicodedata.category(each) in ("Cf", "Zl", "Zp", "Zs", "Cc") for each in text)


def show(value: Any) -> str:
    """Return a value as a message shows it: short, and naming its type where that is the news."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{str(value).lower()} (bool)"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**25 else f"a number of {len(str(value))} digits"
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.12g}"
    if isinstance(value, str):
        short = value[:SHOWN_CHARS]
        quote = ascii if _CONTROL.search(short) else repr
        while len(quote(short)) > 2 * SHOWN_CHARS:  # escapes are up to ten characters each
            short = short[:-1]
        return quote(short if short == value else short + "…")
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a struct"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, Moment):
        return f"{value.text[:SHOWN_CHARS]} ({value.kind[:SHOWN_CHARS]})"
    return f"{str(value)[:SHOWN_CHARS]} ({type(value).__name__})"
