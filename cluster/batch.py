"""The graph as a Ray Data job: read → encode → denoise → develop and commit, row by row.

A row that fails carries its failure on to the end, where it is recorded; nothing raises but what
ends the run. An actor that dies is started anew by Ray Data, which gives it its row again. Only the
pool's clients are here; the gangs are the pool's.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import atexit
import logging
import os
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.data.expressions import col

from cluster.answers import PoolBrokenError
from cluster.client import PoolClient
from cluster.demand import CLIENT_CPUS, beside_encode
from cluster.leaving import leave_in_time
from cluster.stages import Encode, Publish, RenderSpec, Row, denoise_once
from pipeline.documents import Commit, Failure
from pipeline.errors import UnseenOutputError
from pipeline.ledger import Ledger
from pipeline.recipe import StageSpec
from pipeline.request import RenderRequest

Table = Any
READ_CPUS = 0.25
EXECUTOR_END_S = 10.0


def make_work(requests: Mapping[str, RenderRequest]) -> Table:
    """Return the clips to render, in order, as the table that `run_batch` reads."""
    return pa.table(
        {
            "clip_id": pa.array(list(requests), pa.string()),
            "request": pa.array([each.model_dump_json() for each in requests.values()]),
        }
    )


def run_batch(
    spec: RenderSpec, ledger: Ledger, pool: PoolClient, work_key: str
) -> Generator[Commit | Failure]:
    """Render every clip of the ledger's work table; yield what became of each, as it ends.

    `pool` is one that was joined for the ledger's output. Clips that it puts off, as their gangs
    find no place, are asked for again once the others have ended, and then wait.
    """
    _configure()
    put_off = list[str]()
    with _read_as_seen(ledger.store.locate(work_key)):
        for clip_id, outcome in _pass(spec, ledger, pool, work_key, is_patient=False):
            if outcome:
                yield outcome
            else:
                put_off.append(clip_id)
        if put_off:
            for clip_id, outcome in _pass(spec, ledger, pool, work_key, put_off, is_patient=True):
                if outcome is None:
                    raise PoolBrokenError(f"the pool has put off clip {clip_id}, which was to wait")
                yield outcome


def _pass(
    spec: RenderSpec,
    ledger: Ledger,
    pool: PoolClient,
    work_key: str,
    only: Sequence[str] = (),
    *,
    is_patient: bool,
) -> Iterator[tuple[str, Commit | Failure | None]]:
    """Take all clips through the stages, or some; yield each one's end, None for those put off."""
    recipe = spec.recipe
    gangs = sum(shape.count for shape in recipe.gangs)
    in_flight = gangs + recipe.encode.workers + 1
    path, filesystem = ledger.store.locate_for_arrow(work_key)
    rows: Any = ray.data.read_parquet(
        path, filesystem=filesystem, num_cpus=READ_CPUS, override_num_blocks=1
    )
    if only:
        rows = rows.filter(expr=col("clip_id").is_in(list(only)))
    done = (
        rows.repartition(target_num_rows_per_block=1)
        .map(
            _Encode,
            fn_constructor_args=(spec, ledger, work_key),
            **stage_options(recipe.encode),
        )
        .map(
            _Denoise,
            fn_constructor_args=(pool, ledger, is_patient),
            compute=ActorPoolStrategy(
                size=1,
                max_tasks_in_flight_per_actor=in_flight,
                max_concurrent_calls_per_actor=in_flight,
            ),
            **beside_encode(recipe, CLIENT_CPUS),
        )
        .map(
            _Publish,
            fn_constructor_args=(spec, ledger, work_key),
            **stage_options(recipe.develop),
        )
    )
    with _executors_ended(done):
        for block in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in block.to_pylist():
                kind = Failure if row["failed"] else Commit
                outcome = kind.model_validate_json(row["outcome"]) if row["outcome"] else None
                yield row["clip_id"], outcome


@contextmanager
def _read_as_seen(work: str) -> Generator[None]:
    """Name what it means where a node that is to read the table `work` doesn't find it.

    Raises:
        UnseenOutputError: it doesn't.
    """
    try:
        yield
    except FileNotFoundError as error:  # what stages raise comes as another class
        raise UnseenOutputError.told("a node", work) from error


@contextmanager
def _executors_ended(dataset: Any) -> Generator[None]:
    """End what Ray Data runs for a dataset in this process, once the block is over.

    Ray Data 2.60 does so itself, but where Ctrl-C comes between two of its own lines: then with the
    last reference, held by the exception's traceback. After `ray.shutdown` that starts another Ray.
    """
    create, created = dataset._create_executor, list[Any]()

    def create_and_keep() -> Any:
        created.append(create())
        return created[-1]

    dataset._create_executor = create_and_keep
    try:
        yield
    finally:
        for executor in created:
            executor.shutdown(force=True)
            if executor.is_alive():
                executor.join(EXECUTOR_END_S)


def _check_place(ledger: Ledger, work_key: str) -> None:
    """Check that this node sees the run's output, before a gang works for what is committed here.

    By the work table, whose name no other run has: another folder may have a lease of this epoch.

    Raises:
        UnseenOutputError: it doesn't.
    """
    if not ledger.store.exists(work_key):
        node = f"node {socket.gethostname()}"
        raise UnseenOutputError.told(node, ledger.store.locate(work_key))


class _Encode(Encode):
    def __init__(self, spec: RenderSpec, ledger: Ledger, work_key: str) -> None:
        _check_place(ledger, work_key)
        super().__init__(spec)
        self._ledger = ledger
        leave_in_time(self.busy)

    def __call__(self, row: Row) -> Row:
        return self.encode(row, self._ledger)


class _Denoise:
    """Row with conditioning → row with packed latents, by way of the pool."""

    def __init__(self, pool: PoolClient, ledger: Ledger, is_patient: bool) -> None:
        # This process owns the conditioning that ranks borrow. Where Ray 2.60 has word for such a
        # borrower left at exit, its destructors wait for ever on a thread that has ended.
        atexit.register(os._exit, 0)
        self._pool, self._ledger, self._is_patient = pool, ledger, is_patient
        leave_in_time(nullcontext())  # whoever asks the pool again gets the same clip

    async def __call__(self, row: Row) -> Row:
        return await denoise_once(self._pool, row, self._ledger, is_patient=self._is_patient)


class _Publish(Publish):
    def __init__(self, spec: RenderSpec, ledger: Ledger, work_key: str) -> None:
        _check_place(ledger, work_key)
        super().__init__(spec)
        self._ledger = ledger
        leave_in_time(self.busy)

    def __call__(self, row: Row) -> Row:
        return self.publish(row, self._ledger)


def stage_options(stage: StageSpec) -> dict[str, Any]:
    """Return what Ray Data is told of a stage's actors."""
    return {
        "compute": ActorPoolStrategy(size=stage.workers, max_tasks_in_flight_per_actor=2),
        "num_cpus": stage.num_cpus,
        "num_gpus": stage.num_gpus or None,
        "label_selector": dict(stage.label_selector),
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
