"""The manifest: its columns, its labels' types, and what SQL sees of it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.columns import REQUEST_COLUMNS
from pipeline.documents import Artifact, Commit, Failure, OutputIdentity, new_attempt
from pipeline.identity import digest
from pipeline.ledger import Ledger
from pipeline.manifest import MANIFEST_SCHEMA, build_manifest, write_manifest
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

REQUEST = RenderRequest(
    prompt="a red bottle",
    width=64,
    height=48,
    num_frames=17,
    fps=8.0,
    seed=2**40,
    num_inference_steps=4,
    guidance_scale=4.0,
)
A, B, C = (digest(name) for name in "abc")
IDENTITY = OutputIdentity(model="tiny", model_fingerprint="f" * 64, finish={}, recipe="tiny-cpu")


def plan_rows(
    clip_ids: list[str | None],
    rejects: list[str | None] | None = None,
    ids: list[str | None] | None = None,
    **labels: Any,
) -> pa.Table:
    n = len(clip_ids)
    request = {
        name: [value] * n for name, value in REQUEST.model_dump(include={*REQUEST_COLUMNS}).items()
    }
    return pa.table(
        {
            "row": list(range(n)),
            "id": pa.array(ids or [None] * n, pa.string()),
            "clip_id": pa.array(clip_ids, pa.string()),
            "reject": pa.array(rejects or [None] * n, pa.string()),
            **request,
            **labels,
        }
    )


def commit(clip_id: str) -> Commit:
    attempt = new_attempt()
    stem = f"clips/{clip_id[:2]}/{clip_id}/{attempt}"
    return Commit(
        clip_id=clip_id,
        attempt=attempt,
        request=REQUEST,
        width=64,
        height=48,
        num_frames=17,
        fps=8.0,
        duration_s=17 / 8,
        model="tiny",
        model_fingerprint="f" * 64,
        layout="1",
        gang="cpu",
        timings={"encode": 0.5, "denoise": 1.5, "upload": 0.25},
        device_seconds=1.5,
        video=Artifact(key=f"{stem}.mp4", sha256="1" * 64, size_bytes=1234),
        poster=Artifact(key=f"{stem}.jpg", sha256="2" * 64, size_bytes=12),
        committed_at=datetime.datetime.now(datetime.UTC),
    )


def write_commit(store: ObjectStore, each: Commit) -> None:
    key = f"commits/{each.clip_id[:2]}/{each.clip_id}.json"
    store.create(key, each.model_dump_json().encode())


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "out")


def test_one_row_a_row_in_every_state(store: ObjectStore) -> None:
    failure = Failure(clip_id=B, attempt=new_attempt(), stage="denoise", reason="out of memory")
    old = Failure(clip_id=A, attempt=new_attempt(), stage="develop", reason="disk full")
    each = commit(A)
    rows = plan_rows(
        [A, B, C, None, None],
        rejects=[None, None, None, "width: got 65", "prompt: empty"],
        ids=["ad-1", None, None, "ad-4", None],
    )
    manifest = build_manifest(rows, [each], [failure, old], store)
    assert manifest.schema.equals(MANIFEST_SCHEMA)
    got = manifest.to_pylist()
    assert [row["status"] for row in got] == [
        "committed",
        "failed",
        "remaining",
        "rejected",
        "rejected",
    ]
    assert [row["id"] for row in got] == ["ad-1", B[:16], C[:16], "ad-4", None]
    assert [row["error"] for row in got] == [
        None,
        "denoise: out of memory",
        None,
        "width: got 65",
        "prompt: empty",
    ]
    assert got[0] == {
        **REQUEST.model_dump(include={*REQUEST_COLUMNS}),
        "id": "ad-1",
        "clip_id": A,
        "status": "committed",
        "uri": store.locate(each.video.key),
        "poster_uri": store.locate(each.poster.key),
        "duration_s": 17 / 8,
        "model": "tiny",
        "model_fingerprint": "f" * 64,
        "layout": "1",
        "attempt": each.attempt,
        "error": None,
        "sha256": "1" * 64,
        "size_bytes": 1234,
        "encode_s": 0.5,
        "denoise_s": 1.5,
        "develop_s": None,
        "upload_s": 0.25,
        "device_seconds": 1.5,
    }
    assert got[1]["attempt"] == failure.attempt
    assert (got[2]["uri"], got[2]["attempt"], got[2]["prompt"]) == (None, None, "a red bottle")


def test_two_rows_one_clip(store: ObjectStore) -> None:
    rows = plan_rows([A, A], ids=["one", "two"], locale=["de", "fr"])
    got = build_manifest(rows, [commit(A)], [], store).to_pylist()
    assert [row["status"] for row in got] == ["committed", "committed"]
    assert got[0]["uri"] == got[1]["uri"]
    assert [row["locale"] for row in got] == ["de", "fr"]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["de", None]).dictionary_encode(),
        pa.array([[{"sku": 1, "tags": ["a"]}], None]),
        pa.array([{"width": 1.5, "at": datetime.date(2026, 1, 2)}, None]),
        pa.array([1, None], pa.timestamp("us", tz="Europe/Berlin")),
        pa.array([1, None], pa.timestamp("ns")),
        pa.array([1, None], pa.duration("ms")),
        pa.array([1, None], pa.uint8()),
        pa.array([1.5, None], pa.float32()),
        pa.array(["1.10", None]).cast(pa.decimal128(9, 2)),
        pa.array([b"x", None], pa.large_binary()),
        pa.array(["x", None], pa.large_string()),
        pa.array([[("de", 1)], None], pa.map_(pa.string(), pa.int32())),
        pa.array([None, None], pa.null()),
    ],
    ids=lambda values: str(values.type)[:40],
)
def test_labels_keep_their_types(store: ObjectStore, values: pa.Array) -> None:
    ledger = Ledger(store)
    ledger.open_output(IDENTITY)
    ledger.save_rows("ads", plan_rows([A, B], label=values))
    write_manifest(ledger)
    manifest = pq.read_table(store.locate("manifest/ads.parquet"))
    assert manifest.schema.field("label").type == values.type
    assert manifest["label"].to_pylist() == values.to_pylist()
    assert manifest.column_names == [*MANIFEST_SCHEMA.names, "label"]


def test_request_columns_of_other_types(store: ObjectStore) -> None:
    rows = plan_rows([A])
    for name, type_ in (
        ("prompt", pa.large_string()),
        ("negative_prompt", pa.dictionary(pa.int32(), pa.string())),
        ("width", pa.int32()),
        ("fps", pa.float32()),
    ):
        place = rows.column_names.index(name)
        rows = rows.set_column(place, name, rows[name].cast(type_))
    rows = rows.set_column(rows.column_names.index("reject"), "reject", pa.nulls(1))
    assert build_manifest(rows, [], [], store).schema.equals(MANIFEST_SCHEMA)


def test_sql_over_the_folder(store: ObjectStore) -> None:
    ledger = Ledger(store)
    ledger.open_output(IDENTITY)
    ledger.save_rows("ads", plan_rows([A, B], locale=["de", "fr"], wave=[1, 2]))
    ledger.save_rows("more-ads", plan_rows([A, C], product=["shoe", "hat"], wave=["x", None]))
    for clip_id in (A, B, C):
        write_commit(store, commit(clip_id))
    status = write_manifest(ledger)
    assert (status.rows, status.committed, status.clips) == (4, 4, 3)
    files = store.locate("manifest") + "/*.parquet"
    counted = duckdb.sql(
        "select status, count(*), count(distinct uri), count(locale), count(product),"
        f" sum(size_bytes) from read_parquet('{files}', union_by_name=true) group by status"
    ).fetchall()
    assert counted == [("committed", 4, 3, 2, 2, 4 * 1234)]
    waves = duckdb.sql(f"select wave from read_parquet('{files}', union_by_name=true)").fetchall()
    assert waves == [("1",), ("2",), ("x",), (None,)]
    uri, *_ = duckdb.sql(f"select uri from '{files}' where clip_id = '{B}'").fetchall()[0]
    assert uri.startswith(f"{store.uri}/clips/{B[:2]}/{B}/")


def test_empty_table(store: ObjectStore) -> None:
    manifest = build_manifest(plan_rows([]).slice(0, 0), [], [], store)
    assert manifest.num_rows == 0
