"""CSV as people and tools write it: labels get types, where those lose nothing of the text."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrow import open_bytes
from pipeline.csv_tables import read_csv
from pipeline.errors import UsageError
from tests.support.tables import cells, make_plan, reject_of

PROMPTS = ["a red cup", "a blue shoe", "a green can"]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "ads.csv"
    path.write_text(
        "\ufeffid,prompt,negative_prompt,width,fps,seed,region,bid\n"
        '007,"a red cup, still\non a table",,48,12.5,9007199254740993,NA,1\n'
        "8,a shoe,none,,, ,EU,2\n"
        "9,a can,,n/a,8,1.0,,3\n",
        encoding="utf-8",
    )
    plan = make_plan(path)
    assert cells(plan, "id", "prompt", "negative_prompt", "width", "fps", "region", "bid") == [
        ("007", "a red cup, still\non a table", "blurry", 48, 12.5, "NA", 1),
        ("8", "a shoe", "none", 64, 8.0, "EU", 2),
        ("9", "a can", "blurry", None, 8.0, None, 3),
    ]
    assert cells(plan, "seed")[0] == (2**53 + 1,)
    assert (reject_of(plan, 2) or "").startswith("width: got 'n/a'")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"sep=,", b'"sep=,"', b"\xef\xbb\xbfSEP=,"])
def test_a_first_line_for_excel_is_no_header(tmp_path: Path, mark: bytes, end: bytes) -> None:
    path = tmp_path / "ads.csv"
    path.write_bytes(end.join([mark, b"prompt,product", b"a red ball,ball", b""]))
    assert cells(make_plan(path), "prompt", "product") == [("a red ball", "ball")]
    path.write_bytes(end.join([mark, b"prompt,product", b"a red ball", b""]))
    with pytest.raises(UsageError, match="line 3 has 1 values, expected 2"):
        make_plan(path)


def test_csv_that_pyarrow_wrote(tmp_path: Path) -> None:
    table = pa.table({"prompt": PROMPTS, "width": [48.0, None, 80.0], "on": [True, None, False]})
    pa_csv.write_csv(table, tmp_path / "ads.csv")
    plan = make_plan(tmp_path / "ads.csv")
    assert cells(plan, "prompt", "width", "on") == list(
        zip(PROMPTS, [48, 64, 80], [True, None, False], strict=True)
    )


def test_marks_within_quotes_part_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "ads.csv"
    path.write_text('"prompt"\n"a; b"\n')
    assert cells(make_plan(path), "prompt") == [("a; b",)]
    path.write_text('prompt,x\na,5" pipe\nb,"two\nlines"\nc,""\n')
    assert cells(make_plan(path), "x") == [('5" pipe',), ("two\nlines",), (None,)]
    path.write_text('"prompt"\n"a; ""b"""\n\n')
    assert cells(make_plan(path), "prompt") == [('a; "b"',)]


def test_csv_that_is_not_utf8_rejects_its_rows_only(tmp_path: Path) -> None:
    (tmp_path / "ads.csv").write_bytes(b"prompt,city\na cup,Ulm\ncaf\xe9,K\xf6ln\n")
    plan = make_plan(tmp_path / "ads.csv")
    assert reject_of(plan) is None
    assert "not UTF-8" in (reject_of(plan, 1) or "")
    assert cells(plan, "city") == [("Ulm",), ("K\ufffdln",)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('prompt,tag\n"a red ball,x\n"a blue ball",y\n"a green ball",z\n', "line 2: a quotation"),
        ('id,prompt\n1,"a red ball\n2,"a blue ball"\n3,"a can"\n', "line 2: a quotation"),
        ('prompt,tag\n"two\nlines",x\n"a red ball,x\n"a can",y\n', "line 4: a quotation"),
        ('prompt\n"a red ball\n"a can"\n', "line 2: a quotation"),
        ('prompt,n\na can,1\n"A cup that says \\"hot\\"",1\n', "line 3: a quotation"),
        ('prompt,n\n"\\"hot\\", it says",1\n', "line 2: a quotation"),
        ('"prompt,n\n"a",1\n', "line 1: a quotation"),
        ('prompt,n\n"a cup" of tea,1\n', "line 2: a quotation"),
        ('\ufeff\nprompt,n\r\n\r\n"a\r\ncup",1\r\n\r\nb\r\n', "line 7 has 1 values, expected 2"),
        ('prompt,n\na, "b, c"\n', "line 2 has 3 values, expected 2; quote values that"),
    ],
)
def test_quotation_marks_and_commas_that_are_missing_are_named(
    tmp_path: Path, text: str, line: str
) -> None:
    (tmp_path / "ads.csv").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(UsageError, match=rf"^{tmp_path}/ads\.csv: {line}[^\n]*$") as caught:
        make_plan(tmp_path / "ads.csv")
    assert "red ball" not in str(caught.value)
    assert "quotation" not in line or str(caught.value).endswith('within a value ("", not \\")')


def test_a_csv_that_is_not_utf8_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ads.csv"
    path.write_bytes("prompt,city\na,Ulm\nb,Köln\ncafé\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"ads\.csv: line 4 has 1 values, expected 2; a missing"):
        make_plan(path)
    path.write_bytes("prompt,größe\na,1\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"ads\.csv: its header is not in UTF-8; save it as UTF-8"):
        make_plan(path)
    path.write_bytes("prompt,city\na,Köln\n".encode("latin-1"))
    (hint,) = make_plan(path).tables[0].hints
    assert hint.startswith(f"{path} is not in UTF-8: ")
    path.write_text("prompt,city\na,Köln\n", encoding="utf-8")
    assert make_plan(path).tables[0].hints == ()
    assert capfd.readouterr() == ("", "")


def test_a_csv_value_may_be_long(tmp_path: Path) -> None:
    text = "x" * (2 * csv.field_size_limit())
    limit = csv.field_size_limit()
    (tmp_path / "ads.csv").write_text(f"prompt,notes\na,{text}\n")
    assert cells(make_plan(tmp_path / "ads.csv"), "notes") == [(text,)]
    assert csv.field_size_limit() == limit


CELLS = st.text(st.sampled_from("ab, \"\\\n'é병\ufeff;\t"), max_size=8)
ROWS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=4)
)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_csv_as_tools_write_it_is_read_as_they_meant_it(rows: list[list[str]]) -> None:
    header = ["prompt", "b", "c", "d"][: len(rows[0])]
    frame = pd.DataFrame(rows, columns=header)
    bare, crlf = io.StringIO(), io.StringIO()
    csv.writer(bare, lineterminator="\n").writerows([header, *rows])
    csv.writer(crlf, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    texts = [
        bare.getvalue(),
        crlf.getvalue(),
        frame.to_csv(index=False),
        pl.DataFrame(frame.to_dict("list")).write_csv(include_bom=True, quote_style="always"),
    ]
    for text in texts:
        content = open_bytes(text.encode())
        table = read_csv(content, "ads.csv", header).table.to_pydict()
        read = zip(*(table[name] for name in header), strict=True)
        assert [[cell or "" for cell in row] for row in read] == rows


def test_a_csv_label_loses_nothing_to_its_type(tmp_path: Path) -> None:
    path = tmp_path / "ads.csv"
    path.write_text(
        "prompt,sku,phone,ad,aspect,share,count,at,on\n"
        "a,00123,+491701234567,120208123456789012345,16:10,1.5,-5,10:00:00,2026-01-01\n"
        "b,7,,120208123456789012346,21:09,-0.5,0,,\n",
        encoding="utf-8",
    )
    plan = make_plan(path)
    assert cells(plan, "sku", "phone", "ad", "aspect") == [
        ("00123", "+491701234567", "120208123456789012345", "16:10"),
        ("7", None, "120208123456789012346", "21:09"),
    ]
    assert cells(plan, "share", "count") == [(1.5, -5), (-0.5, 0)]
    schema = plan.tables[0].rows.schema
    assert [schema.field(name).type for name in ("at", "on")] == [pa.time32("s"), pa.date32()]


@pytest.mark.parametrize(
    "texts",
    [
        ("1.10", "1.1"),
        ("1.50", "2.5"),
        ("20.0", "20"),
        ("1E5", "100000"),
        ("0.1000000000000000055", "0.1"),
        ("NaN", "1.5"),
        ("TRUE", "true"),
        ("2026-01-01T10:00:00", "2026-01-01 10:00:00"),
        ("2026-01-01 10:00:00+02:00", "2026-01-01 08:00:00Z"),
        ("-0", "0"),
    ],
)
def test_a_csv_label_whose_type_would_be_written_differently_is_text(
    tmp_path: Path, texts: tuple[str, str]
) -> None:
    rows = "".join(f"a,{text}\n" for text in texts)
    (tmp_path / "ads.csv").write_text(f"prompt,x\n{rows}")
    assert cells(make_plan(tmp_path / "ads.csv"), "x") == [(text,) for text in texts]
    for number, text in enumerate((*texts, "text")):
        (tmp_path / f"{number}.csv").write_text(f"prompt,x\na,{text}\n")
    assert cells(make_plan(tmp_path / "[0-9].csv"), "x") == [(texts[0],), (texts[1],), ("text",)]


def test_a_csv_label_has_the_type_that_its_tool_gave_it(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "prompt": PROMPTS,
            "price": [20.0, 19.99, 1e-05],
            "views": [1.5, None, 3.0],
            "on": [True, False, True],
            "at": pd.to_datetime(
                ["2026-01-31 12:00:00.5", "2026-02-01", "2026-02-02 08:30"], format="mixed"
            ),
        }
    )
    kinds = {"price": "double", "views": "double", "on": "bool"}
    written = {
        "pandas": lambda path: frame.to_csv(path, index=False),
        "polars": lambda path: pl.from_pandas(frame).write_csv(path),
        "duckdb": lambda path: duckdb.from_df(frame).write_csv(str(path)),
        "arrow": lambda path: pa_csv.write_csv(pa.Table.from_pandas(frame), path),
    }
    for tool, write in written.items():
        write(tmp_path / f"{tool}.csv")
        schema = make_plan(tmp_path / f"{tool}.csv").tables[0].rows.schema
        assert {name: str(schema.field(name).type) for name in kinds} == kinds, tool
        assert pa.types.is_timestamp(schema.field("at").type), tool
    (tmp_path / "excel.csv").write_text("prompt,price,on\na,1.50,TRUE\nb,20.00,FALSE\n")
    assert cells(make_plan(tmp_path / "excel.csv"), "price", "on") == [(1.5, True), (20.0, False)]
    frame.to_parquet(tmp_path / "pandas.parquet")
    assert cells(make_plan(tmp_path / "pandas.*"), "price") == [(20.0,), (19.99,), (1e-05,)] * 2


def test_a_typed_label_is_as_it_was_written_where_another_file_has_text(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("prompt,price,on,at\na,1.50,TRUE,2026-01-31T10:00\n")
    (tmp_path / "2.csv").write_text("prompt,price,on,at\nb,on request,no,soon\n")
    assert cells(make_plan(tmp_path), "price", "on", "at") == [
        ("1.50", "TRUE", "2026-01-31T10:00"),
        ("on request", "no", "soon"),
    ]


def test_csv_columns_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "ads.csv"
    frame = pd.DataFrame({"prompt": PROMPTS, "bid": [1, 2, 3]})
    frame.to_csv(path)  # its index as a first column
    plan = make_plan(path)
    assert cells(plan, "prompt", "bid") == list(zip(PROMPTS, [1, 2, 3], strict=True))
    assert plan.tables[0].rows.column_names[-1] == "bid"
    for index in ([1, 2, 3], [0, 2, 30]):  # R's, and a filtered one of pandas
        frame.set_axis(index).to_csv(path)
        assert make_plan(path).tables[0].rows.column_names[-1] == "bid"
    frame.set_axis([120208, 120311, 120450]).to_csv(path)
    with pytest.raises(UsageError, match="values but no name in the header: 1 "):
        make_plan(path)
    path.write_text('prompt,bid,,\na red cup,1,,\na blue shoe,2,"",\n')  # as Excel leaves it
    plan = make_plan(path)
    assert cells(plan, "prompt", "bid") == [("a red cup", 1), ("a blue shoe", 2)]
    assert plan.tables[0].rows.column_names[-1] == "bid"


def test_a_label_that_is_text_in_one_csv_is_text_in_all(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("prompt,sku,launch,bid\na,12,2026-01-01,1\n")
    (tmp_path / "2.csv").write_text("prompt,sku,launch,bid,tag\nb,A1,soon,2.5,\n")
    (tmp_path / "3.jsonl").write_text('{"prompt": "c", "sku": 5, "tag": "new"}\n')
    assert cells(make_plan(tmp_path), "sku", "launch", "bid", "tag") == [
        ("12", "2026-01-01", 1, None),
        ("A1", "soon", 2.5, None),
        ("5", None, None, "new"),
    ]


def test_a_label_that_looks_different_in_two_csvs_is_text(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("prompt,at,on,bid\na,2026-01-01,true,5\n")
    (tmp_path / "2.csv").write_text("prompt,at,on,bid\na,2026-01-01 00:00:00,1,2.5\n")
    assert cells(make_plan(tmp_path), "at", "on", "bid") == [
        ("2026-01-01", "true", 5),
        ("2026-01-01 00:00:00", "1", 2.5),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_label_that_is_text_in_parquet_is_text_in_csv(tmp_path: Path, kind: Any) -> None:
    columns = {"prompt": ["a"], "sku": pa.array(["007"], kind), "bid": [1]}
    pq.write_table(pa.table(columns), tmp_path / "1.parquet")
    (tmp_path / "2.csv").write_text("prompt,sku,bid\nb,8,2.5\n")
    assert cells(make_plan(tmp_path), "sku", "bid") == [("007", 1), ("8", 2.5)]
