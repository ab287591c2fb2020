"""Render tables into an output: plan, resume, run on Ray, and write down what became of each row.

The composition root of the batch: everything it needs is made here and handed down.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

from jobs.contact_sheet import render_contact_sheet
from jobs.plan import PlannedCall, find_done, plan_call
from pipeline.documents import Commit, Failure, OutputStatus, new_attempt
from pipeline.ledger import Ledger
from pipeline.manifest import write_manifest
from pipeline.plan import Plan
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

POLL_S = 0.5
STOP_TIMEOUT_S = 30.0


class Reporter(Protocol):
    """Who is told how a run goes."""

    def planned(self, call: PlannedCall, done: int, requests: dict[str, RenderRequest]) -> None:
        """Say what is asked, how many clips are done, and which are left to render."""
        ...

    def ended(self, outcome: Commit | Failure) -> None:
        """Say what became of one clip."""
        ...

    def stepped(self, steps_done: int, gangs_ready: int, gangs: int) -> None:
        """Say how many denoising steps were made in this run; called about twice a second."""
        ...


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    status: OutputStatus
    """Every row of every table of the output, by state."""
    output: str
    rendered: int
    failed: int
    plan: Plan
    """What the call's tables ask for, with why rows were rejected."""
    interrupted: bool
    seconds: float


def render_tables(
    tables: Sequence[str],
    output: str,
    recipe: Recipe,
    reporter: Reporter,
    limit: int | None = None,
    address: str | None = None,
) -> RunResult:
    """Render every clip that the tables ask for and the output doesn't hold yet.

    An interrupt (Ctrl-C) stops the run cleanly: what is committed stays, and the same call again
    goes on from there.

    Raises:
        UsageError: the call is wrong; nothing was written.
        RunBrokenError: the run can't go on; what is committed stays.
    """
    began = time.monotonic()
    call = plan_call(tables, recipe)
    ledger = Ledger(ObjectStore(output))
    ledger.store.locate_for_arrow("run.json")
    done = find_done(call, ledger)
    requests = call.remaining(done, limit)
    if requests:
        from cluster.session import check_cluster

        check_cluster(recipe, address)
    ledger.open_output(call.identity)
    for table in call.plan.tables:
        ledger.save_rows(table.name, table.rows)
    reporter.planned(call, len(done), requests)
    rendered = failed = 0
    interrupted = False
    try:
        if requests:
            for outcome in _run(call, ledger, requests, reporter, address):
                rendered += isinstance(outcome, Commit)
                failed += isinstance(outcome, Failure)
                reporter.ended(outcome)
    except KeyboardInterrupt:
        interrupted = True
    except RunBrokenError:
        with suppress(OSError):  # the store may be what broke
            _write_results(ledger)
        raise
    status = _write_results(ledger)
    return RunResult(
        status=status,
        output=ledger.store.uri,
        rendered=rendered,
        failed=failed,
        plan=call.plan,
        interrupted=interrupted,
        seconds=time.monotonic() - began,
    )


def _write_results(ledger: Ledger) -> OutputStatus:
    """Write the manifest and the page of what the output holds now."""
    status = write_manifest(ledger)
    tables = [ledger.read_table(key) for key in sorted(ledger.store.list("manifest"))]
    title = ledger.store.uri.rstrip("/").rpartition("/")[2]
    ledger.store.put("index.html", render_contact_sheet(tables, title).encode())
    return status


class RunBrokenError(Exception):
    """The run can't go on; what is committed stays, and the same call again continues."""


def _run(
    call: PlannedCall,
    ledger: Ledger,
    requests: dict[str, RenderRequest],
    reporter: Reporter,
    address: str | None,
) -> Iterator[Commit | Failure]:
    """Start Ray and the pool, render, and leave nothing behind."""
    from cluster.batch import BatchSpec, make_work, run_batch
    from cluster.session import ray_session

    work_key = f"work/{new_attempt()}.parquet"
    ledger.put_table(work_key, make_work(requests))
    try:
        with ray_session(call.recipe, address), _pool(call.recipe, reporter) as pool:
            spec = BatchSpec(call.recipe, call.model_fingerprint, ledger)
            try:
                yield from run_batch(spec, pool, work_key)
            except Exception as error:
                raise RunBrokenError(f"the run broke: {_find_cause(error)}") from error
    finally:
        ledger.store.delete(work_key)


def _find_cause(error: BaseException) -> str:
    """Return what first went wrong, out of what Ray wrapped around it, in one line."""
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


@contextmanager
def _pool(recipe: Recipe, reporter: Reporter) -> Generator[Any]:
    """Hold a pool of the recipe's gangs, and tell the reporter of its steps."""
    import threading

    import ray
    from ray.exceptions import RayError

    from cluster.pool import GangPool, PoolProgress

    actor = cast(Any, ray.remote(GangPool))
    pool = actor.options(num_cpus=0, max_concurrency=10_000).remote(recipe)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_S):
            try:
                now = cast(PoolProgress, ray.get(pool.progress.remote(), timeout=10))
            except (RayError, TimeoutError):
                continue
            reporter.stepped(now.steps_done, now.gangs_ready, now.gangs)

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    try:
        ray.get(pool.start.remote(), timeout=60)
        watcher.start()
        yield pool
    finally:
        ended.set()
        watcher.join(STOP_TIMEOUT_S)
        try:
            ray.get(pool.stop.remote(), timeout=STOP_TIMEOUT_S)
        except (RayError, TimeoutError):
            pass
        finally:
            ray.kill(pool)
