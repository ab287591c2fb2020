"""What a folder or a glob names: tables alone, each once, whatever else lies there."""

from __future__ import annotations

import posixpath
import time
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.core import open as open_url
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UsageError
from pipeline.ledger import Ledger
from pipeline.listing import list_folder
from pipeline.manifest import write_manifest
from pipeline.source import Source, read_folders
from pipeline.store import ObjectStore
from tests.support.outputs import IDENTITY
from tests.support.s3 import BUCKET
from tests.support.tables import cells, make_plan


def write(path: Path | str, *prompts: str | None) -> Path | str:
    table = pa.table({"prompt": pa.array(prompts, pa.string())})
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    else:
        with open_url(path, "wb", auto_mkdir=True) as file:
            pq.write_table(table, file)
    return path


def prompts(*sources: Path | str) -> list[str]:
    plan = make_plan(*sources)
    return [each for table in plan.tables for each in table.rows["prompt"].to_pylist()]


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with two tables and an output that was made of them."""
    place = str(tmp_path) if request.param == "file" else f"memory://{uuid.uuid4().hex}"
    write(f"{place}/a.parquet", "a", None)
    ledger = Ledger(ObjectStore(f"{place}/night/out"))
    ledger.open_output(IDENTITY)
    ledger.save_rows("ads", make_plan(f"{place}/a.parquet").tables[0].rows)
    write_manifest(ledger)
    write(f"{place}/more/run.json.parquet", "b")
    return place


def test_what_an_output_holds_is_no_prompt_table(place: str) -> None:
    for source in (place, f"{place}/*", f"{place}/**/*.parquet"):
        plan = make_plan(source)
        assert plan.tables[0].rows["prompt"].to_pylist() == ["a", None, "b"]
        (note,) = plan.tables[0].hints
        assert "night/out is an output of rushes, and is passed over (files: " in note
    whole = f"{place}/night/out"
    for source in (whole, f"{whole}/*", f"{whole}/*/*.parquet"):
        with pytest.raises(UsageError, match=r"out is an output of rushes, .* \(files: \d\)"):
            make_plan(source)
    assert prompts(f"{whole}/rows/ads.parquet") == ["a", None]
    assert prompts(f"{whole}/rejects/*.parquet") == [None]


@pytest.mark.parametrize(
    ("log", "file", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "day=1/part-0.parquet", "a Delta"),
        ("metadata/v1.metadata.json", "data/day=1/0.parquet", "an Iceberg"),
    ],
)
@pytest.mark.parametrize("place", ["file", "s3"])
def test_tables_whose_files_hold_removed_rows_are_refused(
    tmp_path: Path, request: pytest.FixtureRequest, log: str, file: str, kind: str, place: str
) -> None:
    if place == "s3":
        request.getfixturevalue("s3_server")
    tables = str(tmp_path) if place == "file" else f"s3://{BUCKET}/{uuid.uuid4().hex}"
    write(f"{tables}/plain.parquet", "a")
    table = f"{tables}/data/ads"
    write(f"{table}/{file}", "b")
    with open_url(f"{table}/{log}", "wb", auto_mkdir=True) as written:
        written.write(b"{}")
    within = posixpath.dirname(file)
    for source in (table, f"{table}/{within}", f"{table}/{file}", f"{table}/**/*.parquet",
                   f"{table}/{within}/*", tables, f"{tables}/**"):  # fmt: skip
        with pytest.raises(UsageError, match=f"^{table} is {kind} table, .* COPY .FROM"):
            make_plan(source)
    assert prompts(f"{tables}/*.parquet") == ["a"]


def test_hidden_files_match_where_they_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "ads.parquet", "a")
    write(tmp_path / "_half" / "b.parquet", "b")
    write(tmp_path / "_day=1" / "c.parquet", "c")
    (tmp_path / "._ads.parquet").write_bytes(b"\0\5\x16\7")
    for source in (tmp_path, tmp_path / "**" / "*.parquet"):
        assert prompts(source) == ["c", "a"]
    assert prompts(tmp_path / "*.parquet") == ["a"]
    assert prompts(tmp_path / "_h*" / "*") == prompts(tmp_path / "_half") == ["b"]


@pytest.mark.parametrize("name", ["d[1]", "d::y", "d#x", "d*", "d?", "a b", "d=1", "x::d[1]"])
def test_a_name_that_is_there_means_itself(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / name / f"{name}.parquet", "a")
    write(tmp_path / "d1" / "d1.parquet", "b")
    monkeypatch.chdir(tmp_path)
    for source in (name, f"{name}/*.parquet", f"{name}/{name}.parquet", f"{name}/**"):
        assert prompts(source) == ["a"]
        assert prompts(tmp_path / source) == ["a"]
    assert prompts("d[1]") == (["a"] if name == "d[1]" else ["b"])


def test_a_glob_may_begin_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stem = uuid.uuid4().hex
    write(f"memory://{stem}-a.parquet", "a")
    write(f"memory://{stem}-b/day=1/b.parquet", "b")
    (table,) = make_plan(f"memory://{stem}*").tables
    assert table.rows["prompt"].to_pylist() == ["a", "b"]
    assert table.rows["day"].to_pylist() == [None, 1]
    listing = list_folder(fsspec.filesystem("memory"), "/")
    assert {f"/{stem}-a.parquet", f"/{stem}-b/day=1/b.parquet"} <= set(listing.files)
    write(tmp_path / "a.parquet", "a")
    monkeypatch.chdir("/")
    for source in (tmp_path / "a.parquet", tmp_path / "*.parquet"):
        assert prompts(source.relative_to("/")) == ["a"]


def test_a_file_by_two_names_is_one(tmp_path: Path) -> None:
    ads = write(tmp_path / "dd" / "mon.parquet", "a")
    link, folder = tmp_path / "link.parquet", tmp_path / "folder"
    link.symlink_to(ads)
    folder.symlink_to(tmp_path / "dd")
    for other in (link, folder, folder / "*.parquet", folder / "mon.parquet"):
        with pytest.raises(UsageError, match=f"is given by {ads} too; give each table once"):
            make_plan(ads, other)
    (tmp_path / "dd" / "latest.parquet").symlink_to(ads)
    plan = make_plan(tmp_path / "dd")
    assert plan.rows == 1
    assert plan.tables[0].hints == (
        f"{ads} is {tmp_path}/dd/latest.parquet by another name, and is read once",
    )


def test_one_file_in_different_folders_of_keys_is_several_tables(tmp_path: Path) -> None:
    ads = write(tmp_path / "ads.parquet", "a")
    for locale in ("de", "ko"):
        (tmp_path / "all" / f"locale={locale}").mkdir(parents=True)
        (tmp_path / "all" / f"locale={locale}" / "ads.parquet").symlink_to(ads)
    (table,) = make_plan(tmp_path / "all").tables
    assert table.rows["locale"].to_pylist() == ["de", "ko"]
    assert table.hints == ()


def test_a_key_is_text_where_a_file_has_text(tmp_path: Path) -> None:
    write(tmp_path / "n=-5" / "a.parquet", "a")
    pq.write_table(pa.table({"prompt": ["b"], "n": ["five"]}), tmp_path / "x.parquet")
    assert cells(make_plan(tmp_path), "n") == [("-5",), ("five",)]
    (tmp_path / "y.csv").write_text("prompt,n\nb,6.50\n")
    (tmp_path / "z.jsonl").write_text('{"prompt": "b", "n": 7}\n')
    assert cells(make_plan(tmp_path), "n") == [("-5",), ("five",), ("6.50",), ("7",)]
    (tmp_path / "x.parquet").unlink()
    assert cells(make_plan(tmp_path), "n") == [(-5,), (6.5,), (7,)]


def test_folders_of_keys_are_read_in_time(tmp_path: Path) -> None:
    files = tuple(f"/ads/n={n}/even={n % 2}/a.parquet" for n in range(20_000))
    source = Source("/ads", "file:///ads", LocalFileSystem(), "/ads", files)
    started = time.process_time()
    folders = read_folders(source)
    assert time.process_time() - started < 5  # quadratic, it took half a minute
    assert folders[-1] == {"n": 19_999, "even": 1}


def test_a_rejected_row_of_several_files_is_found_in_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", "a", "b")
    write(tmp_path / "b.parquet", "a", None, "")
    write(tmp_path / "c.parquet", "")
    (reason,) = make_plan(tmp_path).reasons
    assert (reason.count, reason.source, reason.row) == (3, f"{tmp_path}/b.parquet", 1)
    (reason,) = make_plan(f"{tmp_path}/[c]*").reasons
    assert (reason.source, reason.row) == (f"{tmp_path}/c.parquet", 0)
    (reason,) = make_plan(f"{tmp_path}/c.parquet").reasons
    assert (reason.source, reason.row) == (f"{tmp_path}/c.parquet", 0)


def test_an_id_of_several_files_is_found_in_its_own(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text(f"id,prompt\n{name}1,x\n{name}2,x\nsame,{name}\n")
    with pytest.raises(UsageError, match=r"a\.csv row 2 and .*b\.csv row 2 \(rows count"):
        make_plan(tmp_path)


def test_a_file_without_prompts_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", "a")
    (tmp_path / "config.json").write_text('{"name": "ads"}')
    with pytest.raises(UsageError, match=r"config\.json has no column 'prompt'; its columns are"):
        make_plan(tmp_path)
    (tmp_path / "config.json").write_text("\n")
    assert prompts(tmp_path) == ["a"]
    (tmp_path / "prompt=b").mkdir()
    (tmp_path / "prompt=b" / "c.csv").write_text("city\nUlm\n")
    assert prompts(tmp_path) == ["a", "b"]


def test_rejects_name_their_file_and_their_row_in_it(tmp_path: Path) -> None:
    write(tmp_path / "ads" / "a.parquet", "a", None)
    write(tmp_path / "ads" / "b.parquet", "b", "c", " ")
    (table,) = make_plan(tmp_path / "ads").tables
    ledger = Ledger(ObjectStore(tmp_path / "out"))
    ledger.open_output(IDENTITY)
    ledger.save_rows(table.name, table.rows, table.uri, table.locate)
    found = ledger.read_table(f"rejects/{table.name}.parquet").select(["source_file", "row"])
    labelled = table.rows.append_column("source_file", table.rows["prompt"])
    ledger.save_rows("b", labelled, table.uri, table.locate)
    own = ledger.read_table("rejects/b.parquet")
    assert own["_source_file"].to_pylist() == found["source_file"].to_pylist()
    assert own["source_file"].to_pylist() == [None, None]
    files = [str(tmp_path / "ads" / name) for name in ("a.parquet", "b.parquet")]
    assert found.to_pylist() == [
        {"source_file": file, "row": row} for file, row in zip(files, (1, 2), strict=True)
    ]
