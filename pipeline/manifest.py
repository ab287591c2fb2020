"""The manifest: one Parquet table a prompt table, one row a row, saying what became of it.

Fixed columns first, the same in every manifest, then the table's labels with the types they came
with. Paths in it are usable as they stand:

    duckdb -c "select status, uri from 'out/demo/manifest/*.parquet'"

(`read_parquet(…, union_by_name=true)` where tables have different labels.)

`_SUCCESS` is written last, after the review page, when there are rows and each has its end:
committed, failed or rejected. It says that the manifest is complete, not that nothing failed; its
content is the counts as JSON. A run removes it when it starts.
"""
# pyarrow carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.columns import MANIFEST_SCHEMA, REQUEST_COLUMNS, ROW_COLUMNS, STAGES
from pipeline.counts import RowCounter
from pipeline.documents import Commit, Failure, OutputStatus, row_status
from pipeline.ledger import SUCCESS_KEY, Ledger
from pipeline.places import map_threads
from pipeline.plan import name_row
from pipeline.store import ObjectStore

CLIP_SCHEMA = pa.schema(
    [field for field in MANIFEST_SCHEMA if field.name not in (*ROW_COLUMNS, "status", "error")]
)
"""Those that come from a commit."""


def check_tables(ledger: Ledger, besides: Container[str] = ()) -> None:
    """Check that `write_manifest` will find the output's tables whole, but for those `besides`.

    Raises:
        UsageError: one is damaged.
    """
    names = (name for name in ledger.table_names() if name not in besides)
    for _ in map_threads(ledger.check_table, names, ledger.store.concurrency):
        pass


def write_manifest(ledger: Ledger) -> OutputStatus:
    """Write the manifest of every planned table; return the counts that it shows."""
    committed, failed = ledger.committed_ids(), ledger.failed_ids()
    counter = RowCounter(committed)

    def describe(name: str, rows: pa.Table) -> pa.Table:
        wanted = set(rows["clip_id"].filter(rows["reject"].is_null()).to_pylist())
        commits = ledger.read_commits(wanted & committed)
        lost = (wanted & failed) - committed
        failures = ledger.latest_failures(lost) if lost else ()
        manifest = build_manifest(rows, commits, failures, ledger.store)
        counter.add_part(name, rows, manifest["status"].to_pylist())
        return manifest

    for name, parts in ledger.load_rows():
        ledger.put_parts(f"manifest/{name}.parquet", map(partial(describe, name), parts))
    return counter.status()


def write_success(ledger: Ledger, status: OutputStatus) -> None:
    """Write `_SUCCESS` if there are rows and all have ended; remove it if not."""
    if status.rows and not status.remaining:
        ledger.store.put(SUCCESS_KEY, status.model_dump_json(indent=1).encode())
    else:
        ledger.store.delete(SUCCESS_KEY)


def build_manifest(
    rows: pa.Table, commits: Iterable[Commit], failures: Iterable[Failure], store: ObjectStore
) -> pa.Table:
    """Return the manifest of some rows of a table, in their order.

    `commits` and `failures` are of its clips, each clip at most once.
    """
    clips, places = _tabulate_commits(commits, store)
    latest = {failure.clip_id: failure for failure in failures}
    clip_ids, rejects = rows["clip_id"].to_pylist(), rows["reject"].to_pylist()
    statuses = [
        row_status(clip_id, reject, places, latest)
        for clip_id, reject in zip(clip_ids, rejects, strict=True)
    ]
    committed = [
        places[clip_id] if status == "committed" else None
        for clip_id, status in zip(clip_ids, statuses, strict=True)
    ]
    failed = [
        latest[clip_id] if status == "failed" else None
        for clip_id, status in zip(clip_ids, statuses, strict=True)
    ]
    rendered = clips.take(pa.array(committed, pa.int64()))
    columns: dict[str, Any] = {name: rows[name] for name in REQUEST_COLUMNS}
    columns |= {name: rendered[name] for name in rendered.column_names}
    columns |= {
        "id": [
            name_row(given, clip_id) if clip_id else given
            for given, clip_id in zip(rows["id"].to_pylist(), clip_ids, strict=True)
        ],
        "clip_id": clip_ids,
        "status": statuses,
        "attempt": [
            failure.attempt if failure else attempt
            for failure, attempt in zip(failed, rendered["attempt"].to_pylist(), strict=True)
        ],
        "error": [
            f"{failure.stage}: {failure.reason}" if failure else reject
            for failure, reject in zip(failed, rejects, strict=True)
        ],
    }
    fixed = [_as_column(columns[field.name], field.type) for field in MANIFEST_SCHEMA]
    labels = [name for name in rows.column_names if name not in ROW_COLUMNS]
    fields = [rows.schema.field(name) for name in labels]
    return pa.table(
        [*fixed, *(rows[name] for name in labels)],
        schema=pa.schema([*MANIFEST_SCHEMA, *fields]),
    )


def _tabulate_commits(
    commits: Iterable[Commit], store: ObjectStore
) -> tuple[pa.Table, Mapping[str, int]]:
    """Return what the manifest needs of commits as a table, and each clip's row in it."""
    places: dict[str, int] = {}
    described: list[dict[str, Any]] = []
    for commit in commits:
        places[commit.clip_id] = len(places)
        described.append(
            {
                "uri": store.locate(commit.video.key),
                "poster_uri": store.locate(commit.poster.key),
                "duration_s": commit.duration_s,
                "model": commit.model,
                "model_fingerprint": commit.model_fingerprint,
                "layout": commit.layout,
                "attempt": commit.attempt,
                "sha256": commit.video.sha256,
                "size_bytes": commit.video.size_bytes,
                "device_seconds": commit.device_seconds,
                **{f"{stage}_s": commit.timings.get(stage) for stage in STAGES},
            }
        )
    return pa.Table.from_pylist(described, schema=CLIP_SCHEMA), places


def _as_column(values: Any, type_: Any) -> Any:
    return values.cast(type_) if isinstance(values, pa.ChunkedArray) else pa.array(values, type_)
