"""JSON: a label has the one type that all its values have, over all files; else it is text."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.json_tables import MAX_DEPTH
from tests.support.tables import cells, make_plan, reject_of

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([2**53 + 1, 10**400, 0.5, 10.0, "", "x", "5", "병", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("kj"), inner),
    max_leaves=4,
)


def plan_values(folder: Path, *files: list[Any]) -> list[Any]:
    """Return what becomes of a label's values, which come in so many files."""
    folder.mkdir(exist_ok=True)
    for number, values in enumerate(files):
        lines = (json.dumps({"prompt": "a", "x": value}) for value in values)
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    rows = make_plan(folder).tables[0].rows
    pq.write_table(rows, folder.parent / "rows.parquet")
    return rows["x"].to_pylist()


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4))
@example([{}, {"k": 1}])
@example([{"k": {}}, {"k": {"j": 1}}])
@example([{}, None])
@example([{"k": 1}, "text"])
@example([{"k": 1}, {"k": "x"}])
@example([[1], ["x"]])
@example([[], {}])
@example([10.0, "text"])
@example([1.5, True])
@example([True, 1])
@example([[1.5], [True]])
@example([2**53 + 1, 0.5])
def test_values_in_files_of_their_own_are_those_of_one_file(values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one = plan_values(Path(folder) / "one", values)
        each = plan_values(Path(folder) / "each", *([value] for value in values))
    assert [(type(value), value) for value in each] == [(type(value), value) for value in one]


@pytest.mark.parametrize(
    "values",
    [
        [1.5, True],
        [True, 1.5],
        [1, False],
        [[1.5], [True]],
        [{"k": 1.5}, {"k": True}],
        [{"k": [{"j": 1.5}]}, None, {"k": None}, {"k": [{"j": True}, {}]}],
    ],
)
def test_a_boolean_is_no_number(tmp_path: Path, values: list[Any]) -> None:
    texts = [value and json.dumps(value) if value is not False else "false" for value in values]
    assert plan_values(tmp_path / "one", values) == texts


def test_values_become_json_where_another_file_has_text(tmp_path: Path) -> None:
    values = [10.0, 5, True, {"k": "병"}, [1, 2.5], {}, None]
    texts = ["10.0", "5", "true", '{"k": "병"}', "[1, 2.5]", "{}", None]
    assert plan_values(tmp_path / "json", ["text"], *([value] for value in values))[1:] == texts
    for number, value in enumerate(values):
        plan_values(tmp_path / str(number), [value])
        (tmp_path / str(number) / "1.csv").write_text("prompt,x\na,[1]\n")
        assert cells(make_plan(tmp_path / str(number)), "x") == [(texts[number],), ("[1]",)]
        (tmp_path / str(number) / "1.csv").unlink()
        pq.write_table(
            pa.table({"prompt": ["a"], "x": ["y"]}), tmp_path / str(number) / "1.parquet"
        )
        assert cells(make_plan(tmp_path / str(number)), "x") == [(texts[number],), ("y",)]


def test_no_fields_are_none_of_those_of_parquet(tmp_path: Path) -> None:
    plan_values(tmp_path / "all", [{}, None])
    pq.write_table(pa.table({"prompt": ["a"], "x": [{"k": 1}]}), tmp_path / "all" / "1.parquet")
    assert cells(make_plan(tmp_path / "all"), "x") == [({"k": None},), (None,), ({"k": 1},)]


def nest(value: Any, levels: int, *, lists: bool) -> Any:
    return nest([value] if lists else {"k": value}, levels - 1, lists=lists) if levels else value


@pytest.mark.parametrize("lists", [True, False])
def test_values_that_are_nested_too_deep_for_parquet_are_text(tmp_path: Path, lists: bool) -> None:
    most = nest(1, MAX_DEPTH, lists=lists)
    assert plan_values(tmp_path / "most", [most]) == [most]
    for levels in (MAX_DEPTH + 1, 100, 500):
        deep = nest(1, levels, lists=lists)
        for number, files in enumerate(([[deep, 2]], [[deep], [2]])):
            planned = plan_values(tmp_path / f"{levels}-{number}", *files)
            assert planned == [json.dumps(deep), "2"]


def test_json_that_parquet_has_no_type_for_is_text(tmp_path: Path) -> None:
    path = tmp_path / "ads.jsonl"
    path.write_text('{"prompt": "a", "meta": {}, "item": {"sku": {}}, "tags": []}\n')
    rows = make_plan(path).tables[0].rows
    pq.write_table(rows, tmp_path / "rows.parquet")
    assert rows.select(["meta", "item", "tags"]).to_pylist() == [
        {"meta": "{}", "item": '{"sku": {}}', "tags": []}
    ]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        {"prompt": "노란 배경의 병", "id": "2026-01-01", "width": 48, "tags": ["a"], "x": 1},
        {"prompt": 5, "id": 3, "width": "80", "x": "two"},
        {"prompt": "half \ud800 a character", "width": True, "x": {"y": "\ud800"}},
        {"prompt": "a can", "seed": 2**63 - 1, "fps": float("nan")},
        {"prompt": "a cup", "width": 10**400, "seconds": 10**400},
    ]
    path = tmp_path / "ads.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    plan = make_plan(path)
    assert plan.valid == 1
    assert cells(plan, "id", "width", "tags", "x")[0] == ("2026-01-01", 48, ["a"], "1")
    assert [(reject_of(plan, row) or "").partition(",")[0] for row in range(1, 5)] == [
        "prompt: got 5",
        "prompt: got half a character (a lone surrogate) at 5",
        "fps: got NaN",
        "width: got a number of 401 digits",
    ]
    array = tmp_path / "ads.json"
    array.write_text(json.dumps(lines[:1]), encoding="utf-8")
    assert make_plan(array).requests() == plan.requests()


def test_a_row_of_json_alone_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "ads.jsonl"
    long = "7" * 5000
    path.write_text(f'{{"prompt": "a", "seed": {long}, "x": {long}}}\n{{"prompt": "b", "x": 1}}\n')
    plan = make_plan(path)
    assert (reject_of(plan) or "").startswith("seed: got '7777")
    assert reject_of(plan, 1) is None
    assert cells(plan, "x") == [(long,), ("1",)]
    path.write_text('{"prompt": ["a"]}\n')
    assert (reject_of(make_plan(path)) or "").startswith("prompt: got a list")
