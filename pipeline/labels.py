# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Labels: a table's other columns, in types that every step after this one can handle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import pyarrow as pa

from pipeline.errors import UsageError

_TEXT = {pa.string(), pa.large_string()}


def clean_label(column: pa.ChunkedArray, shown: str) -> pa.ChunkedArray:
    """Return a label in its plain type, with only UTF-8 text; errors call it `shown`.

    Raises:
        UsageError: nested text is not UTF-8.
    """
    kind = plain_type(column.type)
    if kind != column.type:
        column = _cast(column, kind)
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid as error:
        if pa.types.is_nested(column.type):
            raise UsageError(f"{shown} holds text that is not UTF-8") from error
    cells = column.cast(pa.large_binary()).to_pylist()
    texts = [None if cell is None else cell.decode("utf-8", "replace") for cell in cells]
    return pa.chunked_array([pa.array(texts, column.type)])


def join_labels(
    tables: Sequence[pa.Table], texts: Sequence[Mapping[str, Any]], shown: Sequence[str]
) -> pa.Table:
    """Return several files' labels as one table, in the least type that holds all of each.

    `texts` are, of each file, the labels that have no types but those that they look like, as what
    becomes their text. Such a label is text in every file if it is text in any, where it only
    looked like a number or date in the others; and if it looks like different things in several.

    Raises:
        UsageError: a label has types in two files that none holds both of, or not all values of;
            they are named, as `shown` says.
    """
    pairs = list(zip(tables, texts, strict=True))
    kinds: dict[str, set[pa.DataType]] = {}
    looks: dict[str, set[pa.DataType]] = {}
    for each, written in pairs:
        for field in each.schema:
            kinds.setdefault(field.name, set()).add(field.type)
            if field.name in written:
                looks.setdefault(field.name, set()).add(field.type)

    def fit(name: str) -> bool:
        columns = [(each, written) for each, written in pairs if name in each.column_names]
        return _fit([each.select([name]) for each, written in columns if name in written]) or _fit(
            [each.select([name]) for each, _ in columns]
        )

    worded = {
        name
        for name, found in looks.items()
        if kinds[name] & _TEXT or _differ(found) or (_may_clash(found) and not fit(name))
    }

    def agree(table: pa.Table, written: Mapping[str, Any]) -> pa.Table:
        for place, name in enumerate(table.column_names):
            if name in worded and name in written:
                table = table.set_column(place, name, written[name].cast(pa.string()))
        return table

    agreed = [agree(*pair) for pair in pairs]
    try:
        return _concat(agreed)
    except pa.ArrowException as error:
        conflict = _find_conflict([each.schema for each in agreed], shown)
        conflict = conflict or _find_clash(agreed, shown)
        raise UsageError(
            conflict or f"labels of {len(shown)} files have no type in common: {_shorten(error)}"
        ) from error


def _concat(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive")


def _differ(kinds: Set[pa.DataType]) -> bool:
    """Return whether types are several of which none says what all do, as one of numbers would."""
    several = kinds - {pa.null()}
    return (
        len(several) > 1
        and several != {pa.int64(), pa.float64()}
        and not any(map(pa.types.is_nested, several))
    )


def _may_clash(kinds: Set[pa.DataType]) -> bool:
    return len(kinds) > 1 or any(map(_has_empty_struct, kinds))


def _fit(columns: Sequence[pa.Table]) -> bool:
    """Return whether there is a type that holds all values of a label, and Parquet it."""
    try:
        joined = _concat(columns)
    except pa.ArrowException:
        return False
    return not _has_empty_struct(joined.schema.field(0).type)


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Return whether all of a type's values in one place are `{}`, which Parquet can't hold."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return (pa.types.is_struct(kind) and not inner) or any(map(_has_empty_struct, inner))


def _find_conflict(schemas: Sequence[pa.Schema], shown: Sequence[str]) -> str | None:
    """Return which label's types in which two files have none in common."""
    seen: dict[str, list[tuple[pa.Field, str]]] = {}
    for schema, file in zip(schemas, shown, strict=True):
        for field in schema:
            others = seen.setdefault(field.name, [])
            for other, its_file in others:
                if not _have_common_type(field, other):
                    return (
                        f"label {field.name!r} is {other.type} in {its_file}, and {field.type} in "
                        f"{file}; make it the same type in both"
                    )
            if all(field.type != other.type for other, _ in others):
                others.append((field, file))
    return None


def _find_clash(tables: Sequence[pa.Table], shown: Sequence[str]) -> str | None:
    """Return which label in which file has a value that the type for all files can't hold."""
    try:
        common = pa.unify_schemas([each.schema for each in tables], promote_options="permissive")
    except pa.ArrowException:
        return None
    for field in common:
        name, pairs = field.name, zip(tables, shown, strict=True)
        columns = {file: each.select([name]) for each, file in pairs if name in each.column_names}
        types = {file: column.schema.field(0).type for file, column in columns.items()}
        for file, column in columns.items():
            try:
                _concat([column, pa.schema([field]).empty_table()])
            except pa.ArrowException as error:
                alike = (types[file], pa.null())
                other = next((each for each in types if types[each] not in alike), file)
                return (
                    f"label {name!r} is {types[other]} in {other}, and {types[file]} in "
                    f"{file}, with a value that {field.type} can't hold ({_shorten(error)}); "
                    "make it the same type in both"
                )
    return None


def _shorten(error: Exception) -> str:
    return str(error).partition("\n")[0][:160]


def _have_common_type(one: pa.Field, other: pa.Field) -> bool:
    try:
        pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def plain_type(kind: pa.DataType, *, nested: bool = False) -> pa.DataType:
    """Return the type of the same values that can be filtered, joined and made empty.

    A dictionary's is that of its values. Arrow filters no view, and has no empty array of a list or
    struct with an extension type in it: a view's is the large type, such a one's its storage.
    """
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        storage = plain_type(kind.storage_type, nested=True)
        return storage if nested or storage != kind.storage_type else kind
    if types.is_dictionary(kind):
        return plain_type(kind.value_type, nested=nested)
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_struct(kind):
        return pa.struct([_plain_field(kind.field(i)) for i in range(kind.num_fields)])
    if types.is_map(kind):
        key, item = _plain_field(kind.key_field), _plain_field(kind.item_field)
        return pa.map_(key, item, kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    for is_kind, make in (
        (types.is_list, pa.list_),
        (types.is_large_list, pa.large_list),
        (types.is_list_view, pa.list_view),
        (types.is_large_list_view, pa.large_list_view),
    ):
        if is_kind(kind):
            return make(_plain_field(kind.value_field))
    return kind


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except pa.ArrowNotImplementedError:  # within a list view: by way of Python
        return pa.chunked_array([pa.array(each.to_pylist(), kind) for each in column.chunks], kind)


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain_type(field.type, nested=True))
