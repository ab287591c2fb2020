"""The contact sheet: one self-contained page to review a run's clips, from its manifest.

The page holds its style, its script and its data, and reaches for nothing but the posters and
videos beside it, by relative links: it works from a disk and from a bucket. What a table says is
data to it, never markup: it travels as JSON and is shown as text.
"""

# pyarrow has no type hints.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2
import pyarrow as pa
from markupsafe import Markup

from pipeline.columns import MANIFEST_SCHEMA

FIELDS = tuple(MANIFEST_SCHEMA.names)
"""The manifest's own columns; every other column is a label."""

MAX_ROWS = 50_000
"""Rows that a browser shows with ease; `rushes render` leaves further ones to the manifest."""

MAX_VALUE_CHARS = 1000
"""Of a label's value, as text; what is longer is cut, and whole in the manifest alone."""

_MAX_SAFE_INTEGER = 2**53 - 1
_MEDIA_PATH = re.compile(r"(?:^|/)(clips/[^/]+/[^/]+/[^/]+)$")
_ZERO_FRACTION = re.compile(r"\.0+(?=Z?$)")
_JSON_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


class Omitted(str):
    """Stands for a value that isn't here whole: by it rows can't be filtered."""


def relative_link(uri: str) -> str:
    """Return the link from the output's folder to one of its media files, by the store's layout.

    Raises:
        ValueError: no `clips/<ab>/<clip_id>/<file>` at the end of the address.
    """
    found = _MEDIA_PATH.search(uri)
    if not found:
        raise ValueError(f"uri: {uri!r} does not end in clips/<ab>/<clip_id>/<attempt>.<type>")
    return quote(found[1])


def render_contact_sheet(
    tables: Sequence[pa.Table],
    title: str,
    link: Callable[[str], str] = relative_link,
    *,
    left_out: int = 0,
) -> str:
    """Return the page for these manifest tables, rows in their order.

    `link` turns the manifest's addresses into links from the page. Labels may differ from table
    to table, in type too. `left_out` says how many more rows the manifest has.
    """
    data = json.dumps(
        _collect(tables, link), ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    style, script = _read("contact_sheet.css"), _read("contact_sheet.js")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src 'self' file: data:; media-src 'self' file:; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_read("contact_sheet.html.j2")).render(
        title=title,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=Markup(data.translate(_JSON_ESCAPES)),
        shown=sum(table.num_rows for table in tables),
        left_out=left_out,
    )


def _collect(tables: Sequence[pa.Table], link: Callable[[str], str]) -> dict[str, Any]:
    """Return the page's data: columns of JSON values, one that never varies as its one value."""
    num_rows = sum(table.num_rows for table in tables)
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))

    def column(name: str) -> list[Any]:
        values: list[Any] = []
        for table in tables:
            if name in table.column_names:
                values += _json_values(table.column(name))
            else:
                values += [None] * table.num_rows
        return values

    fields = {name: column(name) for name in FIELDS if name in names}
    for name, kind in (("video", "uri"), ("poster", "poster_uri")):
        links = (link(uri) if uri else None for uri in fields.get(kind, [None] * num_rows))
        fields[name] = list(links)
    labels = {name: [*map(_cut, column(name))] for name in names if name not in FIELDS}
    return {
        "num_rows": num_rows,
        "fields": [_pack(name, values) for name, values in fields.items()],
        "labels": [_pack(name, values) for name, values in labels.items()],
    }


def _pack(name: str, values: list[Any]) -> dict[str, Any]:
    if values and all(type(v) is type(values[0]) and v == values[0] for v in values):
        return {"name": name, "same": values[0]}
    omitted = [row for row, value in enumerate(values) if isinstance(value, Omitted)]
    return {"name": name, "values": values, **({"omitted": omitted} if omitted else {})}


def _cut(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Omitted(f"{text[:MAX_VALUE_CHARS]}…") if len(text) > MAX_VALUE_CHARS else value


def _json_values(column: pa.ChunkedArray) -> list[Any]:
    """Return an Arrow column as JSON values: what JSON has no word for, as text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _json_values(column.cast(kind.value_type))
    if pa.types.is_nested(kind) or isinstance(kind, pa.ExtensionType):
        return [_json_value(scalar) for scalar in column]
    if pa.types.is_temporal(kind):
        return [_json_value(scalar) for scalar in column]
    return [_json_plain(value) for value in column.to_pylist()]


def _json_value(scalar: pa.Scalar) -> Any:
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if isinstance(kind, pa.ExtensionType):
        return _json_value(scalar.value)
    if pa.types.is_dictionary(kind):
        return _json_value(scalar.value)
    if pa.types.is_struct(kind):
        return {name: _json_value(value) for name, value in scalar.items()}
    if pa.types.is_map(kind):
        items = scalar.values[:MAX_VALUE_CHARS]
        pairs = ((_json_value(pair["key"]), _json_value(pair["value"])) for pair in items)
        return {key if isinstance(key, str) else json.dumps(key): value for key, value in pairs}
    if pa.types.is_nested(kind):
        # Each has two characters at least: what comes after so many would be cut.
        return [_json_value(value) for value in scalar.values[:MAX_VALUE_CHARS]]
    if pa.types.is_duration(kind):
        return f"{scalar.cast(pa.int64()).as_py()} {kind.unit}"
    if pa.types.is_timestamp(kind) and kind.tz:
        return _json_value(scalar.cast(pa.timestamp(kind.unit))) + "Z"
    if pa.types.is_temporal(kind):
        return _ZERO_FRACTION.sub("", str(scalar.cast(pa.string()).as_py()))
    return _json_plain(scalar.as_py())


def _json_plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _MAX_SAFE_INTEGER else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return Omitted(f"bytes, {_describe_size(len(value))}")
    return str(value)


def _describe_size(size_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= size:
            return f"{size_bytes / size:.{0 if size_bytes >= 10 * size else 1}f} {unit}"
    return f"{size_bytes} B"


def _read(name: str) -> str:
    return (resources.files("jobs") / "templates" / name).read_text("utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
