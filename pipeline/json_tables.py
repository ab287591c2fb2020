# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""JSON: lines of objects, or one array of them, and the types that a label's values can share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

import pyarrow as pa

from pipeline.errors import UsageError

MAX_DEPTH = 30
"""Of lists and objects in each other: more than anybody filters by, and as much as Parquet's
readers surely take (Arrow's gives up at a schema of 100 levels, of which a list is two)."""
_EXPECTED = (
    "expected an object a row, each on a line of its own or all in one array "
    "(pandas: to_json(path, orient='records', lines=True))"
)


class _RepeatedKeyError(Exception):
    """An object has one key twice: which of the values is meant, nobody knows."""


def parse_objects(content: bytes, shown: str) -> list[dict[str, Any]]:
    """Return the objects of JSON lines, or of one JSON array. Python's parser keeps ids as text.

    Raises:
        UsageError: it is none of the two, or an object has one key twice.
    """
    text = content.decode("utf-8-sig", "surrogateescape")
    if text.lstrip()[:1] == "[":
        lines: Iterable[tuple[str, str]] = [("its text", text)]
    else:
        lines = ((f"line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    objects: list[dict[str, Any]] = []
    for where, line in lines:
        try:
            value = _DECODER.decode(line)
        except _RepeatedKeyError as error:
            raise UsageError(f"{shown}: {where} has the key {str(error)[:40]!r} twice") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{shown}: {where} is not JSON ({str(error)[:80]}); {_EXPECTED}"
            ) from error
        for item in cast(list[Any], value) if isinstance(value, list) else [value]:
            if not isinstance(item, dict):
                raise UsageError(f"{shown}: {where} is not a JSON object with a table's columns")
            objects.append(cast(dict[str, Any], item))
    columns = objects[0] if len(objects) == 1 else {}
    is_row = not isinstance(columns.get("prompt", {}), dict) and len(columns) == 1
    if columns and not is_row and all(isinstance(each, dict | list) for each in columns.values()):
        raise UsageError(f"{shown} is one object of lists or objects; {_EXPECTED}")
    return objects


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return built


def _read_int(digits: str) -> int | str:
    """Return a whole number; as text where it has more digits than Python reads."""
    try:
        return int(digits)
    except ValueError:
        return digits


_DECODER = json.JSONDecoder(object_pairs_hook=_build_object, parse_int=_read_int)
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def type_values(values: list[Any]) -> pa.Array:
    """Return JSON values in the one type that fits them all, or as text where none does.

    Nor does one that is nested deeper than `MAX_DEPTH`.
    `{}` is a struct without fields, which no table can be written with: see `pipeline.labels`.
    """
    try:
        array = pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError):
        return write_values(values)
    if _is_deeper(array.type, MAX_DEPTH) or _has_bools(values, array.type):
        return write_values(values)
    return array


def write_values(values: Iterable[Any]) -> pa.Array:
    """Return JSON values as text: text as it is, all others as JSON."""
    texts = (each if isinstance(each, str | None) else _ENCODER.encode(each) for each in values)
    return pa.array([each and replace_broken(each) for each in texts], pa.string())


def _is_deeper(kind: pa.DataType, levels: int) -> bool:
    """Return whether a type has others in it, and they others, for more levels than these."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return bool(inner) and (not levels or any(_is_deeper(each, levels - 1) for each in inner))


def _has_bools(values: Iterable[Any], kind: pa.DataType) -> bool:
    """Return whether values of a type have booleans in a place where it has numbers."""
    if not pa.types.is_nested(kind):
        return not pa.types.is_boolean(kind) and bool in set(map(type, values))
    there = [each for each in values if each is not None]
    if pa.types.is_list(kind):
        return _has_bools((item for each in there for item in each), kind.value_type)
    return any(_has_bools([each.get(field.name) for each in there], field.type) for field in kind)


def replace_broken(text: str) -> str:
    """Return text with what is no UTF-8 replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
