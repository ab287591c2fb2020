"""`rushes render` as a user runs it: from a Parquet table to MP4s that are decoded and counted."""

from __future__ import annotations

import datetime as dt
import decimal
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import ExitCode
from pipeline.columns import MANIFEST_SCHEMA
from pipeline.probe import probe, read_frames
from tests.conftest import NUM_CPUS
from tests.support.command import (
    QUICK,
    list_files,
    measure_rushes,
    rushes,
    start_rushes,
    write_table,
)
from tests.support.s3 import BUCKET

pytestmark = pytest.mark.timeout(600)

LABELS = pa.schema(
    [
        ("product", pa.dictionary(pa.int32(), pa.string())),
        ("variant", pa.int16()),
        ("launch", pa.date32()),
        ("price", pa.decimal128(8, 2)),
        ("tags", pa.list_(pa.string())),
        ("audience", pa.struct([("country", pa.string()), ("age", pa.int8())])),
        ("approved_at", pa.timestamp("us", tz="UTC")),
    ]
)
PROMPTS = ["a red ball rolls", "a blue ball rolls", "a red ball rolls", "", "a green cup turns"]
SIZES = [(64, 48), (32, 32), (64, 48), (32, 32), (65, 32)]
FRAMES = [9, 5, 9, 5, 5]
REJECTED = [3, 4]


def make_ads() -> pa.Table:
    """Return five rows: two clips, one of them asked for twice, and two bad rows."""
    rows = range(len(PROMPTS))
    labels = {
        "product": pa.array(["ball", "ball", "ball", None, "cup"]).dictionary_encode(),
        "variant": [1, 2, 3, 4, None],
        "launch": [dt.date(2026, 12, 1 + row) for row in rows],
        "price": [decimal.Decimal(f"{row}.50") for row in rows],
        "tags": [["a", "b"], [], None, ["c"], ["d"]],
        "audience": [{"country": "DE", "age": 20 + row} for row in rows],
        "approved_at": [dt.datetime(2026, 11, 1, row, tzinfo=dt.UTC) for row in rows],
    }
    columns = {
        "id": pa.array([f"ad-{row}" for row in rows], pa.large_string()),
        "prompt": PROMPTS,
        "width": pa.array([float(width) for width, _ in SIZES]),
        "height": [height for _, height in SIZES],
        "num_frames": pa.array(FRAMES, pa.int16()),
    }
    fixed = pa.table(columns)
    for name in LABELS.names:
        fixed = fixed.append_column(name, pa.array(labels[name], LABELS.field(name).type))
    return fixed


@dataclass(frozen=True)
class Rendered:
    """One run to its end, and the folder that it ran in."""

    folder: Path
    done: subprocess.CompletedProcess[str]

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The manifest's rows, as DuckDB reads them by the path that the README gives."""
        query = f"select * from '{self.output}/manifest/*.parquet'"
        return duckdb.sql(query).to_arrow_table().to_pylist()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """`ads.parquet` rendered into `out`."""
    folder = tmp_path_factory.mktemp("ads")
    pq.write_table(make_ads(), folder / "ads.parquet", row_group_size=2)
    return Rendered(folder, rushes("render", "ads.parquet", "-o", "out", *QUICK, cwd=folder))


def test_exit_code_and_summary(rendered: Rendered) -> None:
    assert rendered.done.returncode == ExitCode.INCOMPLETE, rendered.done.stderr
    assert rendered.done.stderr == ""
    shown = rendered.done.stdout
    assert "5 rows, 2 clips: 0 done before, 2 to render, 2 rows rejected (recipe tiny-cpu)" in shown
    lines = [line.split(None, 1) for line in shown.splitlines()]
    summary = {words[0]: words[1].strip() for words in lines if len(words) == 2}
    output = rendered.output
    assert summary["rendered"].startswith("2 clips in ")
    assert summary["committed"] == "3 rows"
    assert "failed" not in summary
    assert "remaining" not in summary
    assert summary["videos"] == f"{output}/clips/"
    assert summary["manifest"] == f"{output}/manifest/*.parquet"
    assert summary["review"] == f"{output}/index.html"
    assert summary["rejects"] == f"{output}/rejects/*.parquet"
    assert "rejected 1 row: prompt: got blank text, expected some text" in shown
    assert "rejected 1 row: width: got 65, expected a multiple of 16 from 32 to 256" in shown


def test_videos_decode_to_what_was_asked(rendered: Rendered) -> None:
    committed = [row for row in rendered.rows if row["status"] == "committed"]
    assert [row["id"] for row in committed] == ["ad-0", "ad-1", "ad-2"]
    for row in committed:
        number = int(row["id"].removeprefix("ad-"))
        width, height = SIZES[number]
        frames = read_frames(row["uri"])
        assert frames.shape == (FRAMES[number], height, width, 3)
        seen = probe(row["uri"])
        assert (seen.width, seen.height, seen.num_frames) == (width, height, FRAMES[number])
        assert seen.faststart
        assert (row["width"], row["height"], row["num_frames"]) == (width, height, len(frames))
        assert row["fps"] == 8
        assert row["duration_s"] == FRAMES[number] / 8
        content = Path(row["uri"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert row["size_bytes"] == len(content)
        with Image.open(row["poster_uri"]) as poster:
            assert (poster.format, poster.size) == ("JPEG", (width, height))


def test_a_clip_asked_for_twice_is_rendered_once(rendered: Rendered) -> None:
    first, other, second = rendered.rows[:3]
    assert first["uri"] == second["uri"] != other["uri"]
    assert first["seed"] == second["seed"] != other["seed"]  # derived from the request
    videos = [name for name in list_files(rendered.output) if name.endswith(".mp4")]
    assert len(videos) == 2


def test_the_manifest_has_its_columns_and_the_labels_with_their_types(rendered: Rendered) -> None:
    (path,) = (rendered.output / "manifest").iterdir()
    manifest = pq.read_table(path)
    labels = pq.read_table(rendered.folder / "ads.parquet").select(LABELS.names)
    labels = labels.set_column(0, "product", labels["product"].cast(pa.string()))  # decoded
    assert manifest.schema == pa.schema([*MANIFEST_SCHEMA, *labels.schema])
    assert manifest.select(LABELS.names) == labels
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_rejects_have_reasons(rendered: Rendered) -> None:
    (path,) = (rendered.output / "rejects").iterdir()
    rejects = pq.read_table(path).to_pylist()
    assert [row["row"] for row in rejects] == REJECTED
    assert {row["source_file"] for row in rejects} == {"ads.parquet"}, "as it was given"
    in_manifest = [row for row in rendered.rows if row["status"] == "rejected"]
    assert [row["error"] for row in in_manifest] == [row["reject"] for row in rejects]
    assert [row["uri"] for row in in_manifest] == [None, None]
    assert rejects[0]["reject"] == "prompt: got blank text, expected some text"


def test_the_page_and_the_end_mark(rendered: Rendered) -> None:
    page = (rendered.output / "index.html").read_text()
    for row in rendered.rows:
        assert row["id"] in page
        if row["uri"]:
            assert os.path.relpath(row["uri"], rendered.output) in page
    status = json.loads((rendered.output / "_SUCCESS").read_text())
    (table,) = status.pop("tables")
    assert table["source"] == f"file://{rendered.folder}/ads.parquet"
    assert status == {
        "rows": 5, "committed": 3, "failed": 0, "rejected": 2, "remaining": 0,
        "clips": 2, "clips_committed": 2,
    }  # fmt: skip
    assert not any((rendered.output / "work").iterdir())


def test_status_reads_the_output_alone(rendered: Rendered, tmp_path: Path) -> None:
    output = shutil.copytree(rendered.output, tmp_path / "moved")
    shown, measured = measure_rushes("status", output, cwd=tmp_path)
    assert measured["code"] == ExitCode.OK
    assert measured["loaded"] == []
    assert [line.split() for line in shown.splitlines()] == [
        ["output", str(output)],
        ["rows", "5"],
        ["committed", "3", "rows"],
        ["rejected", "2", "rows"],
        ["clips", "2", "of", "2", "committed"],
    ]


def test_a_second_run_finds_nothing_to_do_and_needs_no_ray(rendered: Rendered) -> None:
    before = list_kept(rendered.output)
    call = ("render", "ads.parquet", "-o", "out", *QUICK)
    shown, measured = measure_rushes(*call, cwd=rendered.folder)
    assert measured["code"] == ExitCode.INCOMPLETE
    assert "2 done before, 0 to render" in shown
    assert "Nothing to do" in shown
    assert measured["loaded"] == []
    assert measured["cpu_s"] < 5  # a run that renders takes more before its first step
    assert list_kept(rendered.output) == before


def list_kept(output: Path) -> dict[str, bytes]:
    """Return the files of an output, but for the lease that every run takes anew."""
    return {name: content for name, content in list_files(output).items() if "lease/" not in name}


def test_plan_counts_what_is_done(rendered: Rendered) -> None:
    done = rushes("plan", "ads.parquet", "-o", "out", *QUICK, cwd=rendered.folder)
    counts = dict(line.split(None, 1) for line in done.stdout.splitlines() if "  " in line)
    assert counts["already"].split() == ["done", "2"]
    assert counts["to"].split() == ["render", "0"]


# On a cluster that was there before: a sample first, then a table that has changed.


@pytest.fixture(scope="module")
def address(ray_cluster: None) -> str:
    """The address of a Ray cluster that outlives the runs on it."""
    import ray

    return ray.get_runtime_context().gcs_address


def test_a_cluster_that_asks_for_a_token_is_told_of_at_once(address: str, tmp_path: Path) -> None:
    write_table(tmp_path / "ads.parquet", prompt=["one"])
    call = ("render", "ads.parquet", "-o", "out", "--address", address)
    refused = rushes(*call, cwd=tmp_path, RAY_AUTH_MODE="disabled")
    assert refused.returncode == ExitCode.USAGE
    assert "asks for a token: set RAY_AUTH_MODE=token" in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_sample_then_a_changed_table_render_what_is_new(address: str, tmp_path: Path) -> None:
    call = ("render", "ads.parquet", "-o", "out", "--address", address, *QUICK)
    small = {"width": [32] * 3, "height": [32] * 3, "num_frames": [5] * 3}
    write_table(tmp_path / "ads.parquet", prompt=["one", "two", "three"], **small)
    sample = rushes(*call, "--limit", "1", cwd=tmp_path)
    assert sample.returncode == ExitCode.OK, sample.stderr
    assert "0 done before, 1 to render" in sample.stdout
    first = Rendered(tmp_path, sample)
    assert [row["status"] for row in first.rows] == ["committed", "remaining", "remaining"]
    assert not (first.output / "_SUCCESS").exists()
    clips = {path: path.stat().st_mtime_ns for path in first.output.glob("c*/*/*/*")}

    write_table(tmp_path / "ads.parquet", prompt=["one", "four", "three"], **small)
    changed = rushes(*call, cwd=tmp_path)
    assert changed.returncode == ExitCode.OK, changed.stderr
    assert "3 rows, 3 clips: 1 done before, 2 to render" in changed.stdout
    rows = Rendered(tmp_path, changed).rows
    assert [row["status"] for row in rows] == ["committed"] * 3
    assert [row["prompt"] for row in rows] == ["one", "four", "three"]
    assert [len(read_frames(row["uri"])) for row in rows] == [5, 5, 5]
    assert {path: path.stat().st_mtime_ns for path in clips} == clips
    assert (first.output / "_SUCCESS").exists()


def test_where_others_hold_the_cpus_it_says_so_and_waits(address: str, tmp_path: Path) -> None:
    import ray

    write_table(tmp_path / "ads.parquet", prompt=["one"], num_frames=[5])
    held = ray.util.placement_group([{"CPU": NUM_CPUS - 1}])
    assert held.wait()
    call = ("render", "ads.parquet", "-o", "out", "--address", address, *QUICK)
    with start_rushes(*call, cwd=tmp_path) as run:
        assert run.stdout
        note = next(line for line in run.stdout if line.startswith("note:"))
        ray.util.remove_placement_group(held)
        _, stderr = run.communicate()
    assert run.returncode == ExitCode.OK, stderr
    assert note == (
        "note: only 1 of 2 CPUs that encode, develop and reading ask for are free; "
        "waiting for more\n"
    )


# There, too, S3: the table and the output.


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> Any:
    """A filesystem of the test server, apart from the product's own."""
    return fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)


def test_from_s3_to_s3(bucket: Any, address: str, tmp_path: Path) -> None:
    local = write_table(
        tmp_path / "ads.parquet",
        prompt=["a red ball", "a blue ball"],
        num_frames=[5, 9],
        locale=["de", "fr"],
    )
    bucket.put_file(local, f"{BUCKET}/tables/ads.parquet")
    os.unlink(local)  # noqa: PTH108 - what is rendered is the bucket's
    output = f"s3://{BUCKET}/ads/out"
    tables = f"s3://{BUCKET}/tables/*.parquet"
    call = ("render", tables, "-o", output, "--address", address, *QUICK)
    done = rushes(*call, cwd=tmp_path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert f"{output}/index.html" in done.stdout
    (manifest,) = bucket.ls(f"{BUCKET}/ads/out/manifest")
    with bucket.open(manifest) as file:
        rows = pq.read_table(file).to_pylist()
    assert [(row["status"], row["locale"]) for row in rows] == [
        ("committed", "de"),
        ("committed", "fr"),
    ]
    for row, num_frames in zip(rows, (5, 9), strict=True):
        assert row["uri"].startswith(f"{output}/clips/")
        video = tmp_path / "video.mp4"
        bucket.get_file(row["uri"], str(video))
        assert read_frames(video).shape == (num_frames, 64, 64, 3)
        assert row["sha256"] == hashlib.sha256(video.read_bytes()).hexdigest()
        assert bucket.info(row["uri"])["ContentType"] == "video/mp4"
        assert bucket.exists(row["poster_uri"])
    assert bucket.exists(f"{BUCKET}/ads/out/_SUCCESS")
    assert bucket.info(f"{BUCKET}/ads/out/index.html")["ContentType"] == "text/html"
    assert list(tmp_path.iterdir()) == [tmp_path / "video.mp4"]

    shown, measured = measure_rushes(*call, cwd=tmp_path)
    assert "Nothing to do" in shown
    assert measured["code"] == ExitCode.OK
    assert "ray" not in measured["loaded"]
    shown, _ = measure_rushes("status", output, cwd=tmp_path)
    assert "2 of 2 committed" in shown
