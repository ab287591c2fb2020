"""An output of a night with everything in it that a report tells of, its numbers known by heart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from pipeline.columns import ROW_COLUMNS
from pipeline.documents import Artifact, Commit, Failure, new_attempt
from pipeline.identity import digest
from pipeline.ledger import Ledger
from pipeline.runs import RunRecord, put_run
from pipeline.store import ObjectStore
from tests.support.outputs import IDENTITY, draft

HOSTILE = "</script><img src=x onerror='window.hacked=1'>$\\frac{1}$"
MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)
A, B, C, D, E, F, G = (digest(name) for name in "abcdefg")


def at(hours: float) -> datetime:
    return MIDNIGHT + timedelta(hours=hours)


def plan_rows(rows: list[tuple[str | None, str | None, str | None]], **labels: Any) -> pa.Table:
    """Return planned rows of (clip id, why rejected, given id), with labels."""
    columns: dict[str, Any] = {name: [None] * len(rows) for name in ROW_COLUMNS}
    columns["row"] = list(range(len(rows)))
    for place, name in enumerate(("clip_id", "reject", "id")):
        columns[name] = pa.array([row[place] for row in rows], pa.string())
    return pa.table({**columns, **labels})


def write_commit(store: ObjectStore, clip_id: str, hours: float, **fields: Any) -> None:
    """Commit a clip, without media, so many hours after midnight."""
    base = dict(draft(clip_id))
    stem = f"clips/{clip_id[:2]}/{clip_id}/{base['attempt']}"
    base |= {
        kind: Artifact(key=f"{stem}.{suffix}", sha256="0" * 64, size_bytes=9)
        for kind, suffix in (("video", "mp4"), ("poster", "jpg"))
    }
    commit = Commit(**(base | {"committed_at": at(hours)} | fields))
    store.create(f"commits/{clip_id[:2]}/{clip_id}.json", commit.model_dump_json().encode())


def times(denoise_s: float) -> dict[str, float]:
    return {"encode": 0.5, "denoise": denoise_s, "develop": 2.0, "upload": 0.25}


def write_failure(ledger: Ledger, clip_id: str, reason: str, attempts: int) -> None:
    ledger.record_failure(
        Failure(
            clip_id=clip_id,
            attempt=new_attempt(),
            stage="denoise",
            reason=reason,
            attempts=attempts,
        )
    )


def make_output(store: ObjectStore) -> Ledger:
    """Write the output: three runs, of which the first died; two tables; every kind of end."""
    ledger = Ledger(store)
    ledger.open_output(IDENTITY)
    rows = [
        (A, None, "ad-a"),
        (A, None, "ad-a2"),  # the same clip for another product
        (B, None, None),
        (C, None, "ad-c"),
        (D, None, "ad-d"),
        (None, "width: got 65, expected a multiple of 16; nearest is 64", "ad-e"),
        (None, "width: got 70, expected a multiple of 16; nearest is 64", None),
        (E, None, "ad-g"),
    ]
    ledger.save_rows(
        "ads",
        plan_rows(
            rows,
            product=["bottle", "shoe", HOSTILE, "shoe", "shoe", "bottle", None, "bottle"],
            campaign=["winter"] * 8,
            take=list(range(8)),
            tags=[["x"]] * 8,
        ),
    )
    ledger.save_rows("more", plan_rows([(F, None, "ad-f")], product=["bottle"], season=["spring"]))
    write_commit(store, A, 0.5, duration_s=2.0, device_seconds=60.0, timings=times(30.0))
    write_commit(
        store, B, 1.5, duration_s=3.0, device_seconds=120.0, timings=times(60.0), attempts=2
    )
    write_commit(store, F, 3.5, duration_s=5.0, device_seconds=3420.0, timings=times(3420.0))
    write_commit(store, G, 3.6, device_seconds=10.0)  # which no row asks for any more
    write_failure(ledger, B, "lost 2 gangs", attempts=2)
    write_failure(ledger, C, "lost 3 gangs, the last cpu-0", attempts=3)
    write_failure(ledger, D, "lost 3 gangs, the last cpu-1", attempts=3)
    about: dict[str, Any] = {"host": "node-1", "pid": 7, "recipe": "tiny-cpu"}
    put_run(store, RunRecord(epoch=1, clips=6, started_at=at(0), **about))
    about |= {"clips": 5, "committed": 1}
    stopped = {"started_at": at(1), "ended_at": at(2), "ended": "SIGTERM"}
    put_run(store, RunRecord(epoch=2, gangs_lost=2, device_seconds=5000.0, **stopped, **about))
    broken = {"started_at": at(3), "ended_at": at(4), "ended": "broken"}
    broken["reason"] = f"no space left {HOSTILE}"
    put_run(store, RunRecord(epoch=3, gangs_lost=1, device_seconds=2100.0, **broken, **about))
    return ledger
