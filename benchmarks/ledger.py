"""What `plan`, `status` and a rerun take on an output with very many commits, all of them made up.

Writes a table of N rows and an output in which every clip of it is committed (documents as a run
writes them, no media), then calls the command and prints, for each call, wall and CPU time and the
peak of memory, as Markdown. `--output` may be on S3 (`s3://bucket/folder`); else it is a folder
that is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.plan import plan_call
from jobs.recipes import find_recipe
from pipeline.documents import Artifact, Commit
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore

WRITERS = 16
RUSHES = ("-m", "jobs.cli")
NOTHING_DONE = """
import sys
from cluster.batch import make_work
from jobs.plan import plan_call
from jobs.recipes import find_recipe
make_work(plan_call(sys.argv[1:], find_recipe()).remaining(set()))
"""
"""What a run that finds nothing done does before it starts Ray."""


def write_table(path: Path, rows: int) -> None:
    """Write a table that asks for as many clips as it has rows."""
    table = {
        "prompt": [f"a red ball moving left, take {number}" for number in range(rows)],
        "product": pa.array(["ball", "cup"] * (rows // 2) + ["ball"] * (rows % 2)),
        "locale": pa.array([f"l{number % 40}" for number in range(rows)]),
    }
    pq.write_table(pa.table(table), path)


def write_commits(table: Path, output: str) -> None:
    """Commit every clip of the table, without media."""
    call = plan_call([str(table)], find_recipe())
    store = ObjectStore(output)
    Ledger(store).open_output(call.identity)
    one = "0" * 64
    requests = call.plan.requests()
    request = next(iter(requests.values()))
    attempt = "20261122T000000000000-0123456789abcdef"
    files = {
        kind: Artifact(key=f"clips/00/{one}/{attempt}.{suffix}", sha256=one, size_bytes=4096)
        for kind, suffix in (("video", "mp4"), ("poster", "jpg"))
    }
    commit = Commit(
        clip_id=one,
        attempt=attempt,
        request=request,
        model="tiny",
        model_fingerprint=call.model_fingerprint,
        layout="1",
        gang="single-0",
        attempts=1,
        device_seconds=3.5,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        fps=request.fps,
        duration_s=request.num_frames / request.fps,
        timings={"encode": 0.1, "denoise": 3.5, "develop": 0.4, "upload": 0.1},
        committed_at=datetime.now(UTC),
        **files,
    )
    template = commit.model_dump_json()

    def write(clip_id: str) -> None:
        text = template.replace(f'"clip_id":"{one}"', f'"clip_id":"{clip_id}"')
        text = text.replace(f"clips/00/{one}", f"clips/{clip_id[:2]}/{clip_id}")
        store.put(f"commits/{clip_id[:2]}/{clip_id}.json", text.encode())

    with ThreadPoolExecutor(WRITERS) as threads:
        for _ in threads.map(write, requests, chunksize=1000):
            pass


def measure(*args: str) -> str:
    """Call Python; return a row of what it took."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *args], stdout=subprocess.DEVNULL, text=True)
    _, code, used = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(f"{' '.join(args)} ended with {os.waitstatus_to_exitcode(code)}")
    wall_s, cpu_s = time.monotonic() - began, used.ru_utime + used.ru_stime
    return f"{wall_s:.1f} | {cpu_s:.1f} | {used.ru_maxrss / 1024:.0f}"


def main() -> None:
    """Make the ledger and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commits", type=int, default=1_000_000)
    parser.add_argument("--output", help="where to; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rushes-ledger-") as root:
        table, output = Path(root) / "table.parquet", args.output or f"{root}/out"
        began = time.monotonic()
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # a call's peak counts ours
            apart.submit(write_table, table, args.commits).result()
            apart.submit(write_commits, table, output).result()
        print(f"{args.commits} commits written in {time.monotonic() - began:.0f} s\n", flush=True)
        print("| call | wall s | CPU s | MiB |\n|---|---:|---:|---:|", flush=True)
        calls = {
            "`plan TABLE`": (*RUSHES, "plan", str(table)),
            "`plan TABLE --output`": (*RUSHES, "plan", str(table), "--output", output),
            "`render TABLE`, all done": (*RUSHES, "render", str(table), "--output", output),
            "`render TABLE`, nothing done, until Ray starts": ("-c", NOTHING_DONE, str(table)),
            "`status`": (*RUSHES, "status", output),
        }
        for name, call in calls.items():
            print(f"| {name} | {measure(*call)} |", flush=True)


if __name__ == "__main__":
    main()
