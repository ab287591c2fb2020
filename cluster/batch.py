"""The graph as a Ray Data job: read → encode → denoise → develop and commit, row by row.

A row that fails carries its failure on to the end, where it is recorded; nothing raises but what
ends the run. An actor that dies is started anew by Ray Data, which gives it its row again. Only the
pool's clients are here; the gangs are the pool's.

torch and diffusers are imported by the actors that use them, in their constructors: they take
seconds and most of a gigabyte, and the driver and the pool's client need neither.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from cluster.answers import Rendered
from cluster.leaving import leave_in_time
from pipeline.documents import Commit, Failure, describe_failure
from pipeline.errors import RunEndingError
from pipeline.ledger import Ledger
from pipeline.recipe import Recipe, StageSpec, resolve_checkpoint
from pipeline.request import RenderRequest

if TYPE_CHECKING:
    from pipeline.graph import Graph

Row = dict[str, Any]
Table = Any
CLIENT_CPUS = 0.01
LATENTS_TRIES = 3
READ_CPUS = 0.25


@dataclass(frozen=True)
class BatchSpec:
    """What every stage's actors need to know of a run."""

    recipe: Recipe
    model_fingerprint: str
    ledger: Ledger


def make_work(requests: Mapping[str, RenderRequest]) -> Table:
    """Return the clips to render, in order, as the table that `run_batch` reads."""
    return pa.table(
        {
            "clip_id": pa.array(list(requests), pa.string()),
            "request": pa.array([each.model_dump_json() for each in requests.values()]),
        }
    )


def run_batch(spec: BatchSpec, pool: Any, work_key: str) -> Iterator[Commit | Failure]:
    """Render every clip of the work table at `work_key`; yield what became of each, as it ends.

    `pool` is the handle of a started `GangPool`.
    """
    _configure()
    recipe = spec.recipe
    gangs = sum(shape.count for shape in recipe.gangs)
    in_flight = gangs + recipe.encode.workers + 1
    path, filesystem = spec.ledger.store.locate_for_arrow(work_key)
    rows: Any = ray.data.read_parquet(
        path, filesystem=filesystem, num_cpus=READ_CPUS, override_num_blocks=1
    )
    done = (
        rows.repartition(target_num_rows_per_block=1)
        .map(
            _Encode,
            fn_constructor_args=(spec,),
            **_resources(recipe.encode),
        )
        .map(
            _Denoise,
            fn_constructor_args=(pool,),
            compute=ActorPoolStrategy(
                size=1,
                max_tasks_in_flight_per_actor=in_flight,
                max_concurrent_calls_per_actor=in_flight,
            ),
            num_cpus=CLIENT_CPUS,
        )
        .map(
            _Publish,
            fn_constructor_args=(spec,),
            **_resources(recipe.develop),
        )
    )
    for block in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for text, failed in zip(
            block["outcome"].to_pylist(), block["failed"].to_pylist(), strict=True
        ):
            yield (Failure if failed else Commit).model_validate_json(text)


class _Encode:
    """Row with a request → row with packed conditioning."""

    def __init__(self, spec: BatchSpec) -> None:
        from pipeline.encode import Encoder

        self._encoder = Encoder(_load_graph(spec, spec.recipe.encode), spec.recipe.encode.device)
        self._busy = threading.Lock()
        leave_in_time(self._busy)

    def __call__(self, row: Row) -> Row:
        def encode(request: RenderRequest) -> Row:
            began = time.perf_counter()
            conditioning = self._encoder.encode(request).to_bytes()
            timings = {"encode": time.perf_counter() - began}
            return {"payload": conditioning, "record": json.dumps({"timings": timings})}

        with self._busy:
            return _step("encode", row, encode)


class _Denoise:
    """Row with conditioning → row with packed latents, by way of the pool."""

    def __init__(self, pool: Any) -> None:
        # This process owns the conditioning that ranks borrow. Where Ray 2.60 has word for such a
        # borrower left at exit, its destructors wait for ever on a thread that has ended.
        atexit.register(os._exit, 0)
        self._pool = pool
        leave_in_time(nullcontext())  # whoever asks the pool again gets the same clip

    async def __call__(self, row: Row) -> Row:
        if row["failure"]:
            return row
        rendered, latents = await self._render(row)
        if not rendered.latents:
            *chain, last = rendered.reasons
            failure = describe_failure(
                row["clip_id"], "denoise", last, tuple(chain), rendered.attempts
            )
            return {**row, "payload": b"", "failure": failure.model_dump_json()}
        timings = {**json.loads(row["record"])["timings"], "denoise": rendered.denoise_s}
        record = {
            "timings": timings,
            "gang": rendered.gang,
            "layout": rendered.layout,
            "attempts": rendered.attempts,
            "device_seconds": rendered.device_seconds,
        }
        return {**row, "payload": latents, "record": json.dumps(record)}

    async def _render(self, row: Row, tries: int = LATENTS_TRIES) -> tuple[Rendered, bytes]:
        """Return what became of a clip in the pool, and its latents if there are any."""
        request = RenderRequest.model_validate_json(row["request"])
        rendered = await self._pool.render.remote(row["clip_id"], request, row["payload"])
        try:
            return rendered, await rendered.latents[0] if rendered.latents else b""
        except RayError:  # their node is gone, or the pool's process: what it saved is not
            if tries == 1:
                raise
            return await self._render(row, tries - 1)


class _Publish:
    """Row with latents → the commit; row with a failure → the failure, recorded."""

    def __init__(self, spec: BatchSpec) -> None:
        from pipeline.publish import Publisher

        graph = _load_graph(spec, spec.recipe.develop)
        self._ledger = spec.ledger
        self._publisher = Publisher(spec.recipe, graph, spec.model_fingerprint, spec.ledger)
        self._busy = threading.Lock()
        leave_in_time(self._busy)

    def __call__(self, row: Row) -> Row:
        with self._busy:
            return self._publish(row)

    def _publish(self, row: Row) -> Row:
        from pipeline.publish import Denoised

        def publish(request: RenderRequest) -> Row:
            denoised = Denoised(latents=row["payload"], **json.loads(row["record"]))
            commit = self._publisher.publish(row["clip_id"], request, denoised)
            return {"outcome": commit.model_dump_json()}

        done = _step("develop", row, publish)
        if done["failure"]:
            failure = Failure.model_validate_json(done["failure"])
            self._ledger.record_failure(failure)
            return {"outcome": done["failure"], "failed": True}
        return {"outcome": done["outcome"], "failed": False}


def _step(stage: str, row: Row, make: Callable[[RenderRequest], Row]) -> Row:
    """Return `row` with what `make` adds, or with the failure that it raised.

    Raises:
        RunEndingError: no clip is to blame.
    """
    row = {"payload": b"", "record": "{}", "failure": "", **row}
    if row["failure"]:
        return row
    try:
        return {**row, **make(RenderRequest.model_validate_json(row["request"]))}
    except RunEndingError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a model raises is this clip's failure
        failure = describe_failure(row["clip_id"], stage, error)
        return {**row, "payload": b"", "failure": failure.model_dump_json()}


def _load_graph(spec: BatchSpec, stage: StageSpec) -> Graph:
    import torch

    from pipeline.graph import Graph

    torch.set_num_threads(stage.threads)
    return Graph(spec.recipe.model, resolve_checkpoint(spec.recipe.model))


def _resources(stage: StageSpec) -> dict[str, Any]:
    return {
        "compute": ActorPoolStrategy(size=stage.workers, max_tasks_in_flight_per_actor=2),
        "num_cpus": stage.num_cpus,
        "num_gpus": stage.num_gpus or None,
    }


def _configure() -> None:
    """Set Ray Data up for rows that take minutes."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")  # nothing reports home
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    context.execution_options.verbose_progress = False
    context.use_datasource_v2 = False  # it starts an actor for each Parquet footer, 2 CPU-s each
    context.execution_no_progress_timeout_s = -1  # an hour-long clip is progress too
