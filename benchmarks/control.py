"""What it costs that a gang is driven from outside, in chunks of steps.

    python -m benchmarks.control            print the table
    python -m benchmarks.control --write    write it to benchmarks/control.md

One clip of the embedded model on a gang of one rank and on gangs of two and four, each step by
step and in chunks of `pool.chunk_s`. Control is what the chunks take as the pool sees them, from
the first one's call to the last one's answer, beyond what they take in the first rank. An empty
call is one to every rank that does nothing: what Ray itself takes for a chunk's.

Here ranks and who drives them share the cores, and steps are the ranks' own work. Where a GPU
makes them, a rank waits: the last rows are of a gang of ranks that only wait, so long a step, with
all the rest as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import ray

from benchmarks.overhead import describe_cpu
from cluster import gang as gang_module
from cluster.answers import ClipKey
from cluster.drive import Drive
from cluster.gang import Gang
from cluster.rank import Progress, RankWorker
from cluster.schedule import Task
from cluster.session import ray_session
from cluster.tenants import Tenant
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.encode import Encoder
from pipeline.graph import Graph
from pipeline.identity import digest
from pipeline.model import fingerprint_model, resolve_checkpoint
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

WAITING = {"tensor": 4}
WAIT_S = 0.05
"""What a step takes of a rank that only waits."""
LAYOUTS = ({"tensor": 1}, {"tensor": 2}, {"tensor": 2, "guidance": 2})
STEP_BY_STEP = 1e-6
CLIPS = 3
EMPTY_CALLS = 50
GIVE_UP_S = 30.0
REQUEST = RenderRequest(
    prompt="a red ball moving left on a blue background",
    negative_prompt="",
    width=64,
    height=64,
    num_frames=17,
    fps=8,
    seed=7,
    num_inference_steps=100,
    guidance_scale=4.0,
)
REPORT = Path(__file__).with_name("control.md")


@dataclass
class Chunks:
    """What a gang's chunks took."""

    number: int = 0
    wall_s: float = 0.0
    rank_s: float = 0.0
    """In the first rank."""
    empty_call_s: float = 0.0


class TimedGang(Gang):
    """A gang that keeps what its chunks took."""

    chunks: Chunks
    started_at: float = 0.0

    async def start(self, *args: Any) -> Progress:
        """Begin a clip; from then on its chunks take time."""
        started = await super().start(*args)
        self.started_at = time.perf_counter()
        return started

    async def advance(self, key: ClipKey, max_steps: int, timeout_s: float) -> Progress:
        """Make the steps and take the rank's time for them."""
        made = await super().advance(key, max_steps, timeout_s)
        self.chunks.number += 1
        self.chunks.rank_s += made.seconds
        self.chunks.wall_s += time.perf_counter() - self.started_at
        self.started_at = time.perf_counter()
        return made


class WaitingRank(RankWorker):
    """A rank without weights, whose steps are waits."""

    def load(self) -> None:
        """Load nothing."""
        self._made = 0

    def start(self, *_: Any) -> Progress:
        """Begin a clip."""
        self._made = 0
        return Progress(0, REQUEST.num_inference_steps, 0.0)

    def advance(self, key: ClipKey, max_steps: int) -> Progress:
        """Wait, as for a GPU's steps."""
        began = time.perf_counter()
        steps = min(max_steps, REQUEST.num_inference_steps - self._made)
        time.sleep(WAIT_S * steps)
        self._made += steps
        took = time.perf_counter() - began
        return Progress(self._made, REQUEST.num_inference_steps, took)

    def finish(self, *_: Any) -> tuple[bytes, str]:
        """Make nothing."""
        return b"", ""


async def drive_clips(recipe: Recipe, conditioning: Any, folder: Path) -> tuple[Chunks, float]:
    """Make the clip several times; return what its chunks took, and its whole time on the gang."""
    fingerprint = fingerprint_model(recipe.model, resolve_checkpoint(recipe.model))
    tenant = Tenant(Checkpoints(ObjectStore(folder), fingerprint), 0)
    await tenant.open()
    gang = await TimedGang.create("single-0", folder.name, recipe.gangs[0], recipe)
    seconds = 0.0
    try:
        for number in range(CLIPS + 1):
            if number <= 1:  # the first one warms up
                gang.chunks, seconds = Chunks(), 0.0
            task = Task(ClipKey(tenant.output, digest(number)), REQUEST)
            drive = Drive(recipe, gang, task, tenant, conditioning, lambda: False, lambda: None)
            seconds += (await drive.run()).seconds
        gang.chunks.empty_call_s = await time_empty_call(gang)
    finally:
        gang.kill()
    return gang.chunks, seconds


async def time_empty_call(gang: Gang) -> float:
    """Return what a call takes that does nothing, in seconds: the median."""
    nobodys, seconds = ClipKey("", digest("nobody's")), list[float]()
    for _ in range(EMPTY_CALLS):
        began = time.perf_counter()
        await gang.drop(nobodys, GIVE_UP_S)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    """Measure and print; write the report if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    options = parser.parse_args()
    lines = [
        "| layout | chunks | steps in one | step s | chunks' time s | control "
        "| of a chunk ms | empty call ms | clip's time s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    everything = find_recipe(overrides=["gangs.0.count=4"])
    conditioning = _encode(everything)
    with tempfile.TemporaryDirectory(prefix="rushes-control-") as root, ray_session(everything):
        payload = ray.put(conditioning)
        for layout, rank in [*((each, RankWorker) for each in LAYOUTS), (WAITING, WaitingRank)]:
            gang_module.RankWorker = rank
            what = " of ranks that wait" if rank is WaitingRank else ""
            for chunk_s in (STEP_BY_STEP, everything.pool.chunk_s):
                changes = [f"gangs.0.{name}={degree}" for name, degree in layout.items()]
                recipe = find_recipe(overrides=[*changes, f"pool.chunk_s={chunk_s}"])
                folder = Path(root) / f"{len(lines)}"
                chunks, clips_s = asyncio.run(drive_clips(recipe, payload, folder))
                steps = CLIPS * REQUEST.num_inference_steps
                lines.append(
                    f"| {recipe.gangs[0].layout}{what} | {chunks.number // CLIPS} | "
                    f"{steps / chunks.number:.1f} | {chunks.rank_s / steps:.3f} | "
                    f"{chunks.wall_s / CLIPS:.2f} | "
                    f"{100 * (1 - chunks.rank_s / chunks.wall_s):.2f} % | "
                    f"{1000 * (chunks.wall_s - chunks.rank_s) / chunks.number:.1f} | "
                    f"{1000 * chunks.empty_call_s:.1f} | {clips_s / CLIPS:.2f} |"
                )
                print(lines[-1], flush=True)
    if options.write:
        machine = f"{describe_cpu()}, {os.cpu_count()} cores, {platform.system()}. {date.today()}."
        REPORT.write_text(
            f"# Control\n\n{_describe(machine)}\n\n" + "\n".join(lines) + "\n", "utf-8"
        )


def _encode(recipe: Recipe) -> bytes:
    graph = Graph(recipe.model, resolve_checkpoint(recipe.model))
    return Encoder(graph, "cpu").encode(REQUEST).to_bytes()


def _describe(machine: str) -> str:
    return (
        f"A clip of {REQUEST.num_inference_steps} steps, {REQUEST.width}x{REQUEST.height}, "
        f"{REQUEST.num_frames} frames, of the embedded model; the mean of {CLIPS} clips after one "
        "to warm up. Control: the share of the chunks' time, as who drives the gang sees it, that "
        f"the first rank did not spend on steps. A rank that waits does so for {WAIT_S:g} s a "
        "step, as for a GPU; others make their steps on the cores that they share with who drives "
        "them. An empty call: one to every rank that does nothing, the median of "
        f"{EMPTY_CALLS} in a row, so that no process has to be woken for it. A clip's time has its "
        "begin, its saves and its end as well. "
        f"Machine: {machine}\n\nMade by `python -m benchmarks.control --write`."
    )


if __name__ == "__main__":
    main()
