"""The contenders of `overhead.py`, each run by it in a fresh process of its own.

    python benchmarks/contenders.py bare TABLE OUT PART PARTS
    python benchmarks/contenders.py ray-data TABLE OUT
    python benchmarks/contenders.py ray-data-rows TABLE OUT
    python benchmarks/contenders.py rushes TABLE OUT
    python benchmarks/contenders.py rushes-plain TABLE OUT

All render the clips of TABLE into OUT with the embedded model, two workers of one thread each. A
contender leaves a file in OUT/first-step that holds when its first denoising step was done, in
seconds since the epoch. The first three are written as diffusers' and Ray Data's documentation
show it. They write their files by Rushes' own `VideoWriter`, with the same settings, so that the
same frames make the same bytes everywhere and the comparison is of what goes on around the model.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

WORKERS = 2
SPARE_CPUS = 2
"""Logical CPUs for Ray Data's own tasks, as `rushes` adds them: with none its read waits."""


def note_first_step(out: Path, moment: float) -> None:
    """Write down when the first denoising step of this process was done."""
    folder = out / "first-step"
    folder.mkdir(exist_ok=True)
    path = folder / str(os.getpid())
    if not path.exists():
        path.write_text(repr(moment))


class Classic:
    """diffusers' own pipeline: a row of the table → an MP4."""

    def __init__(self, out: str) -> None:
        """Load the whole pipeline."""
        import torch
        from diffusers import WanVACEPipeline

        from jobs.recipes import find_recipe
        from pipeline.model import resolve_checkpoint

        torch.set_num_threads(1)
        recipe = find_recipe("tiny-cpu")
        self.finish = recipe.finish
        self.pipeline = WanVACEPipeline.from_pretrained(
            resolve_checkpoint(recipe.model), dtype=torch.float32
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.out = Path(out)
        self.started = False

    def render(self, row: dict[str, Any]) -> str:
        """Render one row and return the path of its MP4."""
        import numpy as np
        import torch

        from pipeline.video import VideoWriter

        width, height = int(row["width"]), int(row["height"])
        frames = self.pipeline(
            prompt=str(row["prompt"]),
            negative_prompt=str(row["negative_prompt"]),
            width=width,
            height=height,
            num_frames=int(row["num_frames"]),
            num_inference_steps=int(row["num_inference_steps"]),
            guidance_scale=float(row["guidance_scale"]),
            generator=torch.Generator("cpu").manual_seed(int(row["seed"])),
            callback_on_step_end=None if self.started else self._note,
        ).frames[0]
        path = self.out / f"{row['id']}.mp4"
        with VideoWriter(path, width, height, float(row["fps"]), self.finish) as writer:
            writer.write(np.rint(frames * 255).astype(np.uint8))
        return str(path)

    def _note(self, pipeline: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        if not self.started:
            note_first_step(self.out, time.time())
            self.started = True
        return {}


def run_bare(table: str, out: str, part: int, parts: int) -> None:
    """Loop over every `parts`-th row: one of several bare processes."""
    import pyarrow.parquet as pq

    classic = Classic(out)
    for row in pq.read_table(table).to_pylist()[part::parts]:
        classic.render(row)


class Renderer:
    """The callable class that Ray Data's documentation asks for."""

    def __init__(self, out: str) -> None:
        """Load the model once an actor."""
        self.classic = Classic(out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Render a batch of rows."""
        names = list(batch)
        rows = (dict(zip(names, each, strict=True)) for each in zip(*batch.values(), strict=True))
        return {"id": batch["id"], "path": [self.classic.render(row) for row in rows]}


def run_ray_data(table: str, out: str, *, row_blocks: bool) -> None:
    """Ray Data's documented batch inference: a class, `map_batches`, a pool of actors."""
    import ray

    ray.init(num_cpus=WORKERS + SPARE_CPUS, include_dashboard=False, log_to_driver=False)
    rows = ray.data.read_parquet(table)
    if row_blocks:
        rows = rows.repartition(target_num_rows_per_block=1)
    rows.map_batches(
        Renderer,
        fn_constructor_args=(out,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
        num_cpus=1,
    ).write_parquet(str(Path(out) / "index"))
    ray.shutdown()


class StepClock:
    """A reporter that finds when the first step was done from the counts it is told."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.counts: list[tuple[float, int]] = []

    def planned(self, *what: Any) -> None:
        """Pass over the plan."""

    def ended(self, outcome: Any) -> None:
        """Pass over a clip."""

    def noted(self, text: str) -> None:
        """Say nothing."""

    def stepped(self, steps_done: int, *_: Any) -> None:
        """Keep the count and its moment."""
        self.counts.append((time.time(), steps_done))

    def first_step(self) -> float:
        """Return when the first step was done: between two reports, by the run's mean rate."""
        before = max((at for at, steps in self.counts if not steps), default=0.0)
        after = [(at, steps) for at, steps in self.counts if steps]
        (at, steps), (last_at, last_steps) = after[0], after[-1]
        rate = (last_steps - steps) / max(last_at - at, 1e-3)
        return max(before, at - (steps - 1) / rate) if rate else at


def run_rushes(table: str, out: str, *changes: str) -> None:
    """`rushes render TABLE --output OUT --set ...`, with a reporter that keeps the time."""
    from jobs.recipes import find_recipe
    from jobs.render import render_tables

    clock = StepClock()
    recipe = find_recipe("tiny-cpu", changes)
    result = render_tables([table], str(Path(out) / "output"), recipe, clock)
    if result.status.committed != result.status.rows:
        raise SystemExit(f"not all rows are committed: {result.status}")
    note_first_step(Path(out), clock.first_step())


if __name__ == "__main__":
    name, table, out, *rest = sys.argv[1:]
    if name == "bare":
        run_bare(table, out, *map(int, rest))
    elif name == "rushes":
        run_rushes(table, out)
    elif name == "rushes-plain":
        run_rushes(table, out, "develop.onednn=false")
    else:
        run_ray_data(table, out, row_blocks=name == "ray-data-rows")
