# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Labels: a table's other columns, in types that every step after this one can handle."""

from __future__ import annotations

import pyarrow as pa

from pipeline.errors import UsageError


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
