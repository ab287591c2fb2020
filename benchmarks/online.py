"""What a video online waits for while every gang is busy with a batch, and what it costs the batch.

Starts `rushes serve` with the embedded model and one gang, and on its cluster `rushes render` with
long clips, into an output each: undisturbed and with a video asked for every four seconds, in turn,
then so again while the pool is asked every hundredth of a second how far the videos are. Measures

  wait         POST until a gang begins the video's first step, in seconds and in batch steps
  slowdown     how much longer the batch took than undisturbed, beyond the online work itself: its
               own steps', and the gang's between clips: pauses, other clips' begins and ends
  differing    the batch's videos that are not, byte for byte, those of the first undisturbed one
  polls        what `GET /v1/videos/{id}` takes while 200 clients ask all the time

For the slowdown the gang has a core of its own, as a GPU's steps would, and all else shares the
others. For the wait and the polls nothing is tied to any: asking the pool so often takes a good
part of a core. Run it on a Linux machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from openai import OpenAI

from benchmarks.overhead import describe_cpu
from cluster.answers import PoolProgress
from cluster.client import PoolClient, join_pool
from jobs.plan import find_model
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.documents import Commit
from pipeline.lease import read_lease
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore

SETTINGS = ("pool.chunk_s=0.05", "gangs.0.count=1")
"""A step is longer than the chunk, so that every step ends one."""
SIZE = {"width": 96, "height": 96, "num_frames": 33}
STEPS, ONLINE_STEPS = 30, 4
ROUNDS = 3
EVERY_S = 4.0
POLLERS, POLL_S = 200, 10.0
LOOK_S = 0.01
START_S = 300.0
REPORT = Path(__file__).with_name("online.md")


@dataclass
class Endpoint:
    """A server that runs, and its cluster's address."""

    url: str
    cluster: str
    output: Path


def reserve_core() -> int:
    """Keep this process, and all that it starts from now on, off one core; return which."""
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise SystemExit("this machine has one core; the gang is to have one of its own")
    os.sched_setaffinity(0, others)
    return first


def share_cores(cores: set[int]) -> None:
    """Let this process, and all that it has started, use all of the cores again."""
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, cores)


def give_core(core: int, endpoint: Endpoint) -> None:
    """Move the gang, once it is ready, to a core of its own."""
    while httpx2.get(f"{endpoint.url.removesuffix('/v1')}/readyz").status_code != HTTPStatus.OK:
        time.sleep(0.5)
    ranks = [
        each for each in psutil.Process().children(recursive=True)
        if each.cmdline() and each.cmdline()[0].startswith("ray::RankWorker")
    ]  # fmt: skip
    assert len(ranks) == 1, ranks
    for thread in ranks[0].threads():
        os.sched_setaffinity(thread.id, {core})


@contextmanager
def serve(folder: Path) -> Any:
    """Run the endpoint in processes of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jobs.cli", "serve", "-o", "online", "--insecure"]
    command += ["--port", str(port), "--max-per-minute", "10000", *_settings()]
    process = subprocess.Popen(command, cwd=folder, env=_environment(), stdout=-1, text=True)
    try:
        assert process.stdout
        for line in process.stdout:
            if "--address" in line:
                cluster = line.split("--address")[1].split()[0]
                break
        else:
            raise SystemExit("the endpoint did not start")
        yield Endpoint(f"http://127.0.0.1:{port}/v1", cluster, folder / "online")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def render(folder: Path, name: str, endpoint: Endpoint) -> subprocess.Popen[bytes]:
    """Start the batch on the endpoint's cluster."""
    command = [sys.executable, "-m", "jobs.cli", "render", "ads.parquet", "-o", name]
    command += ["--address", endpoint.cluster, *_settings()]
    log = (folder / f"{name}.log").open("wb")
    return subprocess.Popen(command, cwd=folder, env=_environment(), stdout=log, stderr=log)


def enter(endpoint: Endpoint) -> PoolClient:
    """Return the pool as the endpoint sees it."""
    recipe, fingerprint = find_model(find_recipe(overrides=SETTINGS))
    store = ObjectStore(endpoint.output)
    lease = read_lease(store)
    assert lease
    return join_pool(recipe, Checkpoints(store, fingerprint, lease.epoch))


class Watch:
    """Sees, every hundredth of a second, which of the endpoint's clips have made a step."""

    def __init__(self, pool: PoolClient) -> None:
        """Begin."""
        self.first_steps: list[float] = []
        """When each began its first."""
        self._pool, self._ended, self._seen = pool, threading.Event(), set[str]()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            now: PoolProgress = ray.get(self._pool.progress())
            for clip_id, progress in now.clips.items():
                if progress.step and clip_id not in self._seen:
                    self._seen.add(clip_id)
                    self.first_steps.append(time.monotonic() - progress.step * progress.step_s)

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()


@dataclass(frozen=True)
class Batch:
    """What became of one rendering of the batch."""

    seconds: float
    """From the first clip's begin to the last one's commit."""
    device_seconds: float
    """On gangs, pauses not counted."""
    commits: dict[str, Commit]
    """By clip id."""

    @classmethod
    def read(cls, output: Path) -> Batch:
        """Read what an output holds."""
        commits = list(Ledger(ObjectStore(output)).read_commits())
        began = min(each.committed_at.timestamp() - sum(each.timings.values()) for each in commits)
        return cls(
            max(each.committed_at.timestamp() for each in commits) - began,
            sum(each.device_seconds for each in commits),
            {each.clip_id: each for each in commits},
        )


def run_batch(folder: Path, name: str, endpoint: Endpoint) -> Batch:
    """Render the batch undisturbed."""
    process = render(folder, name, endpoint)
    while process.poll() is None:
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit((folder / f"{name}.log").read_text())
    return Batch.read(folder / name)


def disturb(folder: Path, name: str, endpoint: Endpoint) -> tuple[list[float], Batch]:
    """Render the batch again, with videos in between; tell when each was asked for."""
    client = OpenAI(base_url=endpoint.url, api_key="none", max_retries=0)
    process = render(folder, name, endpoint)
    saves = folder / name / "checkpoints"
    while process.poll() is None and not list(saves.rglob("*.json")):
        time.sleep(0.1)
    number, asked = 0, list[float]()
    while process.poll() is None:
        asked.append(time.monotonic())
        video = client.videos.create_and_poll(
            prompt=f"a red ball, {name} {number}",
            extra_body={"num_inference_steps": str(ONLINE_STEPS)},
            poll_interval_ms=250,
        )
        assert video.status == "completed", video
        number += 1
        time.sleep(max(0.0, EVERY_S - (time.monotonic() - asked[-1])))
    if process.returncode:
        raise SystemExit((folder / f"{name}.log").read_text())
    return asked, Batch.read(folder / name)


async def poll(endpoint: Endpoint) -> tuple[float, float, float]:
    """Ask from many clients at once; return median and 95th percentile seconds, calls a second."""
    client = OpenAI(base_url=endpoint.url, api_key="none")
    video = client.videos.list(limit=1).data[0]
    took: list[float] = []

    async def ask(session: aiohttp.ClientSession, until: float) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            async with session.get(f"{endpoint.url}/videos/{video.id}") as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
            took.append(time.monotonic() - began)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        until = time.monotonic() + POLL_S
        await asyncio.gather(*(ask(session, until) for _ in range(POLLERS)))
    return statistics.median(took), _find_95th(took), len(took) / POLL_S


def main() -> None:
    """Measure and print; write the report if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=8, help="of the batch")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 1:
        print(f"note: the machine's load is {load:.1f}; figures from a busy machine mislead")
    with tempfile.TemporaryDirectory(prefix="rushes-online-") as root:
        folder = Path(root)
        prompts = [f"a blue square, {number}" for number in range(options.clips)]
        table = {"prompt": prompts, "num_inference_steps": [STEPS] * options.clips}
        table |= {name: [value] * options.clips for name, value in SIZE.items()}
        pq.write_table(pa.table(table), folder / "ads.parquet")
        cores = os.sched_getaffinity(0)
        core = reserve_core()
        with serve(folder) as endpoint:
            give_core(core, endpoint)
            ray.init("auto", log_to_driver=False, logging_level="ERROR")  # the only one here
            alone, both = list[Batch](), list[Batch]()
            for number in range(ROUNDS):
                alone.append(run_batch(folder, f"alone-{number}", endpoint))
                both.append(disturb(folder, f"both-{number}", endpoint)[1])
            online_s = Batch.read(endpoint.output).device_seconds
            share_cores(cores)
            watch, asked, watched = Watch(enter(endpoint)), list[float](), list[Batch]()
            for number in range(ROUNDS):
                begun, batch = disturb(folder, f"watched-{number}", endpoint)
                asked += begun
                watched.append(batch)
            watch.end()
            median_s, slow_s, rate = asyncio.run(poll(endpoint))
            ray.shutdown()
    firsts = sorted(watch.first_steps)
    waits = [first - began for began, first in zip(asked, firsts, strict=True)]
    first = alone[0].commits
    step_s, shared_s = (
        statistics.median(
            each.device_seconds / STEPS for batch in batches for each in batch.commits.values()
        )
        for batches in (alone, watched)
    )
    differing = sum(
        other.commits[key].video.sha256 != first[key].video.sha256
        for other in (*alone, *both, *watched)
        for key in first
    )
    alone_s, both_s = (sum(each.seconds for each in batches) for batches in (alone, both))
    alone_gang_s, both_gang_s = (
        sum(each.device_seconds for each in batches) for batches in (alone, both)
    )
    slowdown = (both_s - online_s) / alone_s - 1
    in_steps = (both_gang_s - alone_gang_s) / alone_s
    late_s = _find_95th(waits)
    lines = [
        f"- The batch: {len(first)} clips of {STEPS} steps of {step_s:.3f} s.",
        f"- {len(waits)} videos of {ONLINE_STEPS} steps beside {ROUNDS} batches, whose steps take "
        f"{shared_s:.3f} s where all share the cores. POST to first step: median "
        f"{statistics.median(waits):.2f} s ({statistics.median(waits) / shared_s:.1f} steps), 95th "
        f"percentile {late_s:.2f} s ({late_s / shared_s:.1f} steps); two steps and 100 ms are "
        f"{2 * shared_s + 0.1:.2f} s.",
        f"- {ROUNDS} batches took {alone_s:.1f} s undisturbed, and {both_s:.1f} s with "
        f"{online_s:.1f} device-seconds of online work: {100 * slowdown:+.1f} % beyond it. Their "
        f"own steps make {100 * in_steps:+.1f} % of that, the gang's time between clips "
        f"{100 * (slowdown - in_steps):+.1f} %.",
        f"- {differing} of the batches' videos differ from the first undisturbed one's.",
        f"- {POLLERS} clients that poll: median {1000 * median_s:.0f} ms, 95th percentile "
        f"{1000 * slow_s:.0f} ms, {rate:.0f} calls a second.",
    ]
    print("\n".join(lines))
    if options.write:
        machine = f"{describe_cpu()}, {os.cpu_count()} cores, {platform.system()}. {date.today()}."
        head = "# The endpoint beside a batch\n\nMade by `python -m benchmarks.online --write`, "
        head += f"whose docstring says how it is measured. Machine: {machine}\n\n"
        REPORT.write_text(head + "\n".join(lines) + "\n", "utf-8")
    sys.exit(1 if differing else 0)


def _find_95th(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def _settings() -> list[str]:
    return [word for each in SETTINGS for word in ("--set", each)]


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "token"}


if __name__ == "__main__":
    main()
