"""What a cell says counts, not the type that a tool has written it in; what it can't say, fails."""

from __future__ import annotations

import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tables import make_plan, plan_columns, reject_of

FEW_DIGITS = st.decimals(min_value=1, max_value=10, places=2)
"""Numbers that a float of 16 bits tells apart."""


@settings(max_examples=25, deadline=None)
@given(st.lists(FEW_DIGITS, min_size=1, max_size=20))
def test_a_number_makes_the_same_clip_in_every_type(numbers: list[Decimal]) -> None:
    floats = [float(each) for each in numbers]
    texts = [str(each) for each in numbers]
    forms = [
        pa.array(floats),
        pa.array(floats, pa.float32()),
        pa.array(np.array(floats, np.float16)),
        pa.array(floats, pa.float32()).dictionary_encode(),
        pa.array(numbers, pa.decimal128(9, 2)),
        pa.array(texts),
        pa.array(texts, pa.string_view()),
        pa.array([f" {each}0 " for each in texts]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for column in ("fps", "guidance_scale", "seconds"):
            plans = [plan_columns(Path(folder), **{column: form}) for form in forms]
            rows = [plan.tables[0].rows.to_pylist() for plan in plans]
            assert all(each == rows[0] for each in rows)
            assert column == "seconds" or [row[column] for row in rows[0]] == floats


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_seconds_may_be_a_duration(tmp_path: Path, unit: str) -> None:
    counts = pa.array([2 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit], None, 0])
    plan = plan_columns(tmp_path, seconds=counts.cast(pa.duration(unit)), fps=[16.0, 8.0, 8.0])
    assert plan.tables[0].rows["num_frames"].to_pylist() == [33, 17, None]
    assert (reject_of(plan, 2) or "").startswith("seconds: got 0, expected 0.625 to 10.125")
    short = plan_columns(tmp_path, seconds=pa.array([5], pa.duration("ms")))
    assert (reject_of(short) or "").startswith("seconds: got 0.005, expected")


def test_durations_of_pandas_polars_and_duckdb(tmp_path: Path) -> None:
    path = tmp_path / "ads.parquet"
    seconds = [1.125, 2.125]
    pd.DataFrame({"prompt": ["a", "b"], "seconds": pd.to_timedelta(seconds, "s")}).to_parquet(path)
    first = make_plan(path)
    assert first.tables[0].rows["num_frames"].to_pylist() == [9, 17]
    pl.DataFrame({"prompt": ["a", "b"], "ms": [1125, 2125]}).select(
        "prompt", seconds=pl.duration(milliseconds="ms")
    ).write_parquet(path)
    assert make_plan(path).clip_ids == first.clip_ids
    duckdb.sql(f"copy (select 'a' prompt, interval 2 second as seconds) to '{path}'")
    assert (reject_of(make_plan(path)) or "").startswith("seconds: got bytes, expected 0.625")


def test_an_interval_is_noted_once(tmp_path: Path) -> None:
    for name in "ab":
        path = tmp_path / f"{name}.parquet"
        duckdb.sql(f"copy (select 'a' prompt, interval 2 day gap, time '12:00' t) to '{path}'")
    (table,) = make_plan(tmp_path).tables
    assert table.hints == (
        "column 'gap' is an INTERVAL, of which its 12 bytes are read; "
        "make it text, or a number of seconds",
    )


@pytest.mark.parametrize(
    ("column", "value", "got"),
    [
        ("prompt", pa.array([64], pa.date32()), "1970-03-06 (date32[day])"),
        ("prompt", pa.array([64], pa.duration("ms")), "0.064 s (duration[ms])"),
        ("negative_prompt", pa.array([64], pa.time64("us")), "00:00:00.000064 (time64[us])"),
        ("width", pa.array([64], pa.timestamp("us")), "1970-01-01 00:00:00.000064 (timestamp[us])"),
        ("height", pa.array([64], pa.duration("s")), "64 s (duration[s])"),
        ("num_frames", pa.array([17], pa.duration("ns")), "1.7e-08 s (duration[ns])"),
        ("seed", pa.array([7], pa.date32()).dictionary_encode(), "1970-01-08 (date32[day])"),
        ("fps", pa.array([8], pa.duration("s")), "8 s (duration[s])"),
        ("id", pa.array([8], pa.duration("s")), "8 s (duration[s])"),
        ("seconds", pa.array([2], pa.time32("ms")), "00:00:00.002 (time32[ms])"),
    ],
)
def test_dates_and_times_are_no_text_and_no_numbers(
    tmp_path: Path, column: str, value: pa.Array, got: str
) -> None:
    reason = reject_of(plan_columns(tmp_path, **{column: value}))
    assert (reason or "").startswith(f"{column}: got {got}, expected ")


def test_an_id_that_a_float_may_have_changed_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "ads.parquet"
    ids = [120208123456789013, None]  # an integer column with a gap is pandas' floats
    pd.DataFrame({"prompt": ["a", "b"], "id": ids}).to_parquet(path)
    assert reject_of(make_plan(path)) == (
        "id: got the float 1.20208123457e+17, expected text or an exact number; "
        "floats lose digits from 9007199254740992 on; make the column integer or text"
    )
    assert reject_of(make_plan(path), 1) is None


@pytest.mark.parametrize("column", ["id", "seed"])
@pytest.mark.parametrize(("kind", "limit"), [(pa.float32(), 2**24), (pa.float16(), 2**11)])
def test_a_narrow_float_counts_less_far(
    tmp_path: Path, column: str, kind: pa.DataType, limit: int
) -> None:
    def plan(number: int) -> Any:
        return plan_columns(tmp_path, **{column: pa.array([np.float64(number)]).cast(kind)})

    assert plan(limit - 1).tables[0].rows[column].cast(pa.string())[0].as_py() == str(limit - 1)
    assert f"floats lose digits from {limit} on" in (reject_of(plan(limit)) or "")


def test_an_id_of_many_digits_is_exact(tmp_path: Path) -> None:
    numbers = pa.array([Decimal(10**70 + 1), Decimal(2**53 + 1)], pa.decimal256(76, 0))
    rows = plan_columns(tmp_path, id=numbers).tables[0].rows
    assert rows["id"].to_pylist() == [str(10**70 + 1), str(2**53 + 1)]
