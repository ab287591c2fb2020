"""A label of any type that Parquet has goes the whole way: plan, rows, manifest, page, SQL."""

from __future__ import annotations

import uuid
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.contact_sheet import render_contact_sheet
from pipeline.errors import UsageError
from pipeline.ledger import Ledger
from pipeline.manifest import write_manifest
from pipeline.store import ObjectStore
from tests.support.outputs import IDENTITY
from tests.support.tables import make_plan

LONG = "longer than the twelve bytes that a view holds itself"
TENSOR = pa.fixed_shape_tensor(pa.float32(), [2])
UUID = uuid.UUID(int=5)


def extend(kind: Any, values: list[Any]) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))


TIMES = [
    *(pa.array([1, None], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
    pa.array([1, None], pa.timestamp("us", "Asia/Seoul")),
    *(pa.array([1, None], pa.duration(unit)) for unit in ("s", "ms", "us", "ns")),
    *(pa.array([1, None], pa.time32(unit)) for unit in ("s", "ms")),
    *(pa.array([1, None], pa.time64(unit)) for unit in ("us", "ns")),
    pa.array([1, None], pa.date32()),
    pa.array([86_400_000, None], pa.date64()),
]
NUMBERS = [
    pa.array([True, None]),
    *(pa.array([1, None], kind) for kind in (pa.int8(), pa.uint16(), pa.int64(), pa.uint64())),
    *(pa.array([1.5, None], kind) for kind in (pa.float16(), pa.float32(), pa.float64())),
    pa.array([Decimal("1.10"), None], pa.decimal32(9, 2)),
    pa.array([Decimal("1.10"), None], pa.decimal64(18, 2)),
    pa.array([Decimal("1.10"), None], pa.decimal128(38, 2)),
    pa.array([Decimal("1.10"), None], pa.decimal256(76, 2)),
]
TEXTS = [
    *(pa.array([LONG, None], kind) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *(pa.array([b"\xff", None], kind) for kind in (pa.binary(), pa.large_binary(), pa.binary(1))),
    pa.array([LONG.encode(), None], pa.binary_view()),
    pa.array([LONG, None]).dictionary_encode(),
    pa.array([5, None]).dictionary_encode(),
    pa.nulls(2),
]
NESTED = [
    pa.array([[LONG, None], None], pa.list_(pa.string())),
    pa.array([[LONG, None], None], pa.list_(pa.string_view())),
    pa.array([[LONG, None], None], pa.large_list(pa.string_view())),
    pa.array([[LONG, None], None], pa.list_view(pa.string_view())),
    pa.array([[LONG, None], None], pa.large_list_view(pa.string())),
    pa.array([[[LONG], None], None], pa.list_view(pa.list_view(pa.string_view()))),
    pa.array([{"a": [[LONG]]}, None], pa.struct([("a", pa.list_view(pa.list_(pa.string_view())))])),
    pa.array([[1.5, 2.5], [None, 1.0]], pa.list_(pa.float32(), 2)),
    pa.array([[LONG], [None]], pa.list_(pa.string_view(), 1)),
    pa.array([[LONG, "x"], None], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    pa.array([{"a": 1, "b": [{"c": LONG}]}, None]),
    pa.array([{"a": LONG, "b": [b"x"]}, None],
             pa.struct([("a", pa.string_view()), ("b", pa.list_(pa.binary_view()))])),
    pa.array([{"a": "x"}, None], pa.struct([("a", pa.dictionary(pa.int8(), pa.string()))])),
    pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
    pa.array([[("a", LONG)], None], pa.map_(pa.string_view(), pa.string_view())),
]  # fmt: skip
EXTENSIONS = [
    extend(pa.uuid(), [UUID.bytes, None]),
    extend(pa.json_(), ['{"a": 1}', None]),
    extend(pa.json_(pa.string_view()), ['{"a": 1}', None]),
    extend(pa.bool8(), [1, None]),
    extend(pa.opaque(pa.binary(), "point", "gis"), [b"x", None]),
    extend(TENSOR, [[1, 2], [3, 4]]),
    pa.ListArray.from_arrays([0, 1, 1], extend(pa.uuid(), [UUID.bytes])),
    pa.StructArray.from_arrays([extend(TENSOR, [[1, 2], [3, 4]])], ["t"]),
]


LABELS = TIMES + NUMBERS + TEXTS + NESTED + EXTENSIONS


@pytest.mark.parametrize("values", LABELS, ids=lambda values: str(values.type)[:60])
def test_a_label_of_any_type_goes_the_whole_way(tmp_path: Path, values: pa.Array) -> None:
    pq.write_table(pa.table({"prompt": ["a", None], "label": values}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt": ["b"]}), tmp_path / "b.parquet")
    expected = [*pq.read_table(tmp_path / "a.parquet")["label"].to_pylist(), None]
    ledger = Ledger(ObjectStore(tmp_path / "out"))
    ledger.open_output(IDENTITY)
    rows = make_plan(tmp_path / "[ab].parquet").tables[0].rows
    ledger.save_rows("ads", rows)
    ledger.save_rows("none", rows.slice(0, 0))
    assert write_manifest(ledger) == ledger.status()
    rejects = ledger.read_table("rejects/ads.parquet")
    assert rejects.num_rows == 1
    manifest = ledger.read_table("manifest/ads.parquet")
    assert plain(manifest["label"].to_pylist()) == plain(expected)
    assert plain(rejects["label"].to_pylist()) == plain(expected[1:2])
    assert ledger.read_table("manifest/none.parquet").schema == manifest.schema
    assert render_contact_sheet([manifest], "Run")
    found = duckdb.sql(f"select count(label) from '{tmp_path}/out/manifest/ads.parquet'").fetchall()
    assert found == [(sum(each is not None for each in expected),)]


def test_a_time_as_spark_writes_it_stays_the_same_in_any_year(tmp_path: Path) -> None:
    """As INT96, of which Arrow makes nanoseconds if it isn't told otherwise: to 2262."""
    times = [datetime(9999, 12, 31, 23, 59, 59, 999999), datetime(1, 1, 1), None]
    flat = pa.array(times, pa.timestamp("us"))
    listed = pa.ListArray.from_arrays([0, 1, 2, 3], flat)
    nested = pa.StructArray.from_arrays([flat], ["until"])
    columns = {"flat": flat, "listed": listed, "nested": nested, "prompt": ["a", "b", "c"]}
    path = tmp_path / "ads.parquet"
    pq.write_table(pa.table(columns), path, use_deprecated_int96_timestamps=True)
    rows = make_plan(path).tables[0].rows
    assert rows["flat"].to_pylist() == times
    assert rows["listed"].to_pylist() == [[each] for each in times]
    assert rows["nested"].to_pylist() == [{"until": each} for each in times]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([pa.MonthDayNano([1, 2, 3]), None]),
        pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), pa.array(["x", None])),
        pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2])] * 2),
        pa.array([{}, None], pa.struct([])),
    ],
    ids=lambda values: str(values.type)[:60],
)
def test_a_label_that_parquet_has_no_type_for_leaves_nothing(
    tmp_path: Path, values: pa.Array
) -> None:
    pq.write_table(pa.table({"prompt": ["a", None]}), tmp_path / "a.parquet")
    rows = make_plan(tmp_path / "a.parquet").tables[0].rows.append_column("label", values)
    ledger = Ledger(ObjectStore(tmp_path / "out"))
    ledger.open_output(IDENTITY)
    with pytest.raises(UsageError, match="a label that Parquet can't hold"):
        ledger.save_rows("ads", rows)
    assert ledger.list_tables("rows") == []


def plain(value: Any) -> Any:
    """Return a value with what an extension type makes of it undone."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value.bytes if isinstance(value, uuid.UUID) else value
