"""Tables as real tools write them, wherever they lie; and the calls that stop at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pipeline.errors import UsageError
from tests.support.tables import cells, make_plan, reject_of

PROMPTS = ["a red cup", "a blue shoe", "a green can"]


def test_pandas_writes_missing_integers_as_null(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "prompt": PROMPTS,
            "width": [48, None, 80],  # float64 with NaN in memory
            "num_frames": pd.array([17, None, 33], dtype="Int32"),
            "locale": pd.Categorical(["ko-KR", "de-DE", "ko-KR"]),
        }
    )
    frame[frame.prompt != "none"].iloc[::-1].to_parquet(tmp_path / "ads.parquet")
    plan = make_plan(tmp_path / "ads.parquet")
    assert plan.rejected == 0
    assert cells(plan, "width", "num_frames", "locale") == [
        (80, 33, "ko-KR"),
        (64, 17, "de-DE"),
        (48, 17, "ko-KR"),
    ]
    assert plan.tables[0].rows.column_names[-1] == "locale"  # and no __index_level_0__


def test_polars(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "prompt": pl.Series(PROMPTS, dtype=pl.Categorical),
            "width": pl.Series([48, None, 80], dtype=pl.UInt16),
            "fps": [8.0, None, float("nan")],
            "tags": [["a"], [], None],
        }
    )
    frame.write_parquet(tmp_path / "ads.parquet")
    plan = make_plan(tmp_path / "ads.parquet")
    assert cells(plan, "prompt", "width", "tags") == [
        ("a red cup", 48, ["a"]),
        ("a blue shoe", 64, []),
        ("a green can", 80, None),
    ]
    assert (reject_of(plan, 2) or "").startswith("fps: got NaN")


def test_duckdb_with_hive_partitions(tmp_path: Path) -> None:
    folder = tmp_path / "ads"
    duckdb.sql(
        f"""copy (select * from (values
            ('a red cup', 48::utinyint, 1.5::decimal(5, 1), uuid(), {{'sku': 7}}, 'ko-KR', 1),
            ('a blue shoe', null, 4, uuid(), null, 'de-DE', 2)
        ) t(prompt, width, guidance_scale, id, item, locale, wave))
        to '{folder}' (format parquet, partition_by (locale, wave))"""
    )
    plan = make_plan(folder)
    assert cells(plan, "prompt", "width", "guidance_scale", "item", "locale", "wave") == [
        ("a blue shoe", 64, 4.0, None, "de-DE", 2),
        ("a red cup", 48, 1.5, {"sku": 7}, "ko-KR", 1),
    ]
    assert plan.tables[0].rows.schema.field("wave").type == pa.int64()
    assert all(len(each) == 36 for (each,) in cells(plan, "id"))


def test_pyarrow_partitions_may_be_known_columns(tmp_path: Path) -> None:
    table = pa.table({"prompt": PROMPTS, "width": [48, 80, 48], "code": ["01", None, "02"]})
    parts = ds.partitioning(flavor="hive", schema=table.select(["width", "code"]).schema)
    ds.write_dataset(table, tmp_path / "ads", format="parquet", partitioning=parts)
    (tmp_path / "ads" / "_SUCCESS").touch()
    (tmp_path / "ads" / "_temporary").mkdir()
    (tmp_path / "ads" / "_temporary" / "half.parquet").write_bytes(b"half")
    plan = make_plan(tmp_path / "ads")
    assert sorted(cells(plan, "prompt", "width", "code"), key=str) == [
        ("a blue shoe", 80, None),
        ("a green can", 48, "02"),
        ("a red cup", 48, "01"),
    ]
    one = make_plan(tmp_path / "ads" / "width=*" / "code=02")
    assert cells(one, "prompt", "width") == [("a green can", 48)]
    folder = tmp_path / "ads" / "width=48" / "code=02"
    (file,) = folder.glob("*.parquet")
    for source in (folder.parent, folder, file, folder / "*.parquet"):
        again = make_plan(source)
        assert ("a green can", 48, "02") in cells(again, "prompt", "width", "code")
        assert one.clip_ids <= again.clip_ids


def test_labels_keep_their_types(tmp_path: Path) -> None:
    labels = pa.table(
        {
            "product": pa.array(["cup", None, "can"], pa.large_string()),
            "launch": pa.array([1, 2, None], pa.timestamp("ns", "UTC")),
            "bid": pa.array([1, 2, 3], pa.int8()),
            "share": pa.array([0.5, None, 1], pa.float32()),
            "audience": pa.array([{"age": [18, 24]}, None, {"age": []}]),
            "weights": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int32())),
            "raw": pa.array([b"\xff", None, b""]),
        }
    )
    pq.write_table(labels.append_column("prompt", pa.array(PROMPTS)), tmp_path / "a.parquet")
    rows = make_plan(tmp_path / "a.parquet").tables[0].rows
    assert rows.select(labels.column_names).equals(labels)


def test_a_column_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ads.parquet"
    array = "case when i % 2 = 0 then [1, 2]::float[2] end"
    rows = "(select 'a' as prompt, 1 as n, {} as emb, 'x' as tail from range(3) t(i))"
    duckdb.sql(f"copy {rows.format(array)} to '{path}'")
    with pytest.raises(UsageError) as caught:
        make_plan(path)
    shown = str(caught.value)
    assert shown.startswith(f"{path}: column 'emb' (list<element: float>) can't be read: ")
    assert shown.endswith("; if it is an array, make it a list")
    duckdb.sql(f"copy {rows.format(f'({array})::float[]')} to '{path}'")
    assert cells(make_plan(path), "emb", "tail") == [([1, 2], "x"), (None, "x"), ([1, 2], "x")]
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    content[start : start + 16] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"ads.parquet: column 'n' \(int32\) can't be read: "):
        make_plan(path)


def test_of_a_type_that_arrow_lacks_what_to_do_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ads.parquet"
    frame = pl.DataFrame({"prompt": ["a"], "big": pl.Series([1], dtype=pl.Int128)})
    frame.write_parquet(path)
    with pytest.raises(UsageError) as caught:
        make_plan(path)
    shown = str(caught.value)
    assert shown.startswith(f"{path} has a column of a type that can't be read: Integers with more")
    assert shown.endswith("; make it another type, or text")
    frame.cast({"big": pl.String}).write_parquet(path)
    assert cells(make_plan(path), "big") == [("1",)]


def test_labels_do_not_shadow_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "status": ["new"], "uri": [1], "row": [9]}), path)
    names = make_plan(path).tables[0].rows.column_names
    assert names[-3:] == ["label_status", "label_uri", "label_row"]
    pq.write_table(pa.table({"prompt": ["a"], "uri": [1], "label_uri": [1]}), path)
    with pytest.raises(UsageError, match="two columns would be the label 'label_uri'"):
        make_plan(path)


def test_a_misspelt_column_is_a_label_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"prompt": ["a"], "Width": [80], "numFrames": [9], "city": ["x"]}), path
    )
    plan = make_plan(path)
    assert cells(plan, "width", "label_Width") == [(64, 80)]
    assert plan.tables[0].hints == (
        "column 'Width' is carried as a label; is it 'width'?",
        "column 'numFrames' is carried as a label; is it 'num_frames'?",
    )


def test_many_row_groups_and_files_keep_their_order(tmp_path: Path) -> None:
    for part in (2, 0, 1):
        numbers = range(part * 1000, part * 1000 + 1000)
        kind = pa.int64() if part == 1 else pa.int32()  # files need not agree
        columns = {"prompt": [f"ad {n}" for n in numbers], "n": pa.array(numbers, kind)}
        if part == 2:
            columns["late"] = ["x"] * 1000
        pq.write_table(pa.table(columns), tmp_path / f"part-{part}.parquet", row_group_size=64)
    for source in (tmp_path, tmp_path / "*.parquet"):
        plan = make_plan(source)
        rows = plan.tables[0].rows
        assert rows["n"].to_pylist() == list(range(3000))
        assert rows["row"].to_pylist() == list(range(3000))
        assert rows["late"].null_count == 2000
        ((_, found),) = plan.find_rows([rows["clip_id"][1234].as_py()])
        assert (found.source.rpartition("/")[2], found.row) == ("part-1.parquet", 234)


def test_what_the_folders_of_one_file_say_is_noted(tmp_path: Path) -> None:
    folder = tmp_path / "run=7" / "seed=42"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"prompt": ["a"]}), folder / "ads.parquet")
    (table,) = make_plan(folder / "ads.parquet").tables
    assert table.hints == (
        f"seed=42 of each row comes from the folders that {folder}/ads.parquet is in",
    )
    assert make_plan(folder).tables[0].hints == ()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    filesystem.mkdir("ads")
    yield filesystem
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_s3(bucket: s3fs.S3FileSystem) -> None:
    for locale, prompt in (("ko", "a red cup"), ("de", "a blue shoe")):
        with bucket.open(f"ads/spring/locale={locale}/part.parquet", "wb") as file:
            pq.write_table(pa.table({"prompt": [prompt]}), file)
    expected = [("a blue shoe", "de"), ("a red cup", "ko")]
    for source in ("s3://ads/spring/", "s3://ads/spring", "s3://ads/spring/*/*.parquet"):
        assert cells(make_plan(source), "prompt", "locale") == expected
    folder = make_plan("s3://ads/spring/").tables[0].name
    assert folder == make_plan("s3://ads/spring").tables[0].name
    for missing in ("s3://ads/summer", "s3://nobucket/x.parquet", "s3://ads/*/*.csv"):
        with pytest.raises(UsageError, match=r"no such file|matches"):
            make_plan(missing)


def test_planning_loads_no_heavy_package(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": PROMPTS, "width": [48, None, 65]}), tmp_path / "a.parquet")
    code = """
import sys
from tests.support.tables import make_plan
plan = make_plan(sys.argv[1])
heavy = {"torch", "ray", "diffusers", "pandas", "pyarrow.dataset", "s3fs"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy or plan.rows != 3 else 0)
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.parquet")], check=True, cwd=root)


def test_the_example_is_a_table_of_distinct_clips() -> None:
    plan = make_plan(Path(__file__).parents[2] / "examples" / "ads.parquet")
    assert (plan.rows, plan.clips, plan.rejected) == (8, 8, 0)
    assert plan.tables[0].rows.column_names[-3:] == ["product", "locale", "aspect"]
    assert {frames for (frames,) in cells(plan, "num_frames")} == {17}
