"""Render tables into an output: plan, resume, run on Ray, and write down what became of each row.

The composition root of the batch: everything it needs is made here and handed down.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from jobs.contact_sheet import render_contact_sheet
from jobs.plan import PlannedCall, find_done, plan_call
from pipeline.checkpoints import Checkpoints
from pipeline.documents import Commit, Failure, OutputStatus, new_attempt
from pipeline.errors import RunEndingError
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.manifest import write_manifest
from pipeline.plan import Plan
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

POLL_S = 0.5
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
POOL_RESTARTS = 10


class Reporter(Protocol):
    """Who is told how a run goes."""

    def planned(self, call: PlannedCall, done: int, requests: dict[str, RenderRequest]) -> None:
        """Say what is asked, how many clips are done, and which are left to render."""
        ...

    def ended(self, outcome: Commit | Failure) -> None:
        """Say what became of one clip."""
        ...

    def noted(self, text: str) -> None:
        """Say what happened beside the clips: a wait, a lost gang."""
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
    ended_by: Literal["Ctrl-C", "SIGTERM"] | None
    """What stopped it early."""
    given_up: int
    """Clips that failed before and were not tried again."""
    seconds: float


class StopSignal(KeyboardInterrupt):
    """SIGTERM: Kubernetes or a spot market wants the machine back, and gives us seconds."""


def render_tables(
    tables: Sequence[str],
    output: str,
    recipe: Recipe,
    reporter: Reporter,
    limit: int | None = None,
    address: str | None = None,
    *,
    retry_failed: bool = True,
    wait: bool = False,
) -> RunResult:
    """Render every clip that the tables ask for and the output doesn't hold yet.

    A clip that failed before is tried again until it has had `pool.max_attempts` over all runs, or
    not at all without `retry_failed`. Where another run writes the output, this one waits for its
    end with `wait`, and is refused without.

    An interrupt (Ctrl-C) or SIGTERM stops the run cleanly: what is committed stays, what is
    unfinished is saved, and the same call again goes on from there.

    Raises:
        UsageError: the call is wrong; nothing was written.
        RunBrokenError: the run can't go on; what is committed stays.
    """
    began = time.monotonic()
    call = plan_call(tables, recipe)
    store = ObjectStore(output)
    store.locate_for_arrow("run.json")
    requests = call.remaining(find_done(call, Ledger(store)), limit)
    if requests:
        from cluster.session import check_cluster

        check_cluster(recipe, address)
    Ledger(store).open_output(call.identity)
    lease = Lease.acquire(store, recipe.lease.limit_s, wait=wait, say=reporter.noted)
    ended = _Ended()
    with _kept(lease):
        ledger = Ledger(store, lease.epoch)
        done = find_done(call, ledger)
        requests = call.remaining(done, limit)
        given_up = _find_given_up(ledger, set(requests), recipe, retry=retry_failed)
        for key in given_up:
            del requests[key]
        for table in call.plan.tables:
            ledger.save_rows(table.name, table.rows)
        reporter.planned(call, len(done), requests)
        if given_up:
            reporter.noted(_describe_given_up(len(given_up), recipe, retry=retry_failed))
        try:
            if requests:
                for outcome in _run(call, ledger, requests, reporter, address):
                    ended.count(outcome)
                    reporter.ended(outcome)
        except KeyboardInterrupt as stop:
            ended.by = "SIGTERM" if isinstance(stop, StopSignal) else "Ctrl-C"
        except RunBrokenError:
            with suppress(OSError, RunEndingError):  # the store may be what broke
                _write_results(ledger)
            raise
        status = _write_results(ledger)
    return RunResult(
        status=status,
        output=store.uri,
        rendered=ended.rendered,
        failed=ended.failed,
        plan=call.plan,
        ended_by=ended.by,
        given_up=len(given_up),
        seconds=time.monotonic() - began,
    )


@dataclass
class _Ended:
    """What a run has brought so far."""

    rendered: int = 0
    failed: int = 0
    by: Literal["Ctrl-C", "SIGTERM"] | None = None

    def count(self, outcome: Commit | Failure) -> None:
        self.rendered += isinstance(outcome, Commit)
        self.failed += isinstance(outcome, Failure)


def _find_given_up(ledger: Ledger, wanted: set[str], recipe: Recipe, *, retry: bool) -> set[str]:
    """Return the clips that failed before and aren't to be tried again."""
    counts = ledger.count_attempts(wanted)
    return {key for key, n in counts.items() if not retry or n >= recipe.pool.max_attempts}


def _describe_given_up(number: int, recipe: Recipe, *, retry: bool) -> str:
    limit = recipe.pool.max_attempts
    if retry:
        return (
            f"{number} clips are not tried again: they have failed {limit} times; "
            f"to try once more: --set pool.max_attempts={limit + 1}"
        )
    return f"{number} clips that failed before are not tried again (--no-retry-failed)"


@contextmanager
def _kept(lease: Lease) -> Generator[None]:
    """Keep the lease for the block, which its loss, or a store that fails, ends.

    Raises:
        RunBrokenError: another run has taken over, or the store failed.
    """
    lost: list[str] = []

    def end(reason: str) -> None:
        lost.append(reason)
        _thread.interrupt_main()

    try:
        with lease.kept(end):
            yield
    except (OSError, RunEndingError) as error:
        raise RunBrokenError(f"the run broke: {error}") from error
    except KeyboardInterrupt:
        if lost:
            raise RunBrokenError(f"the run broke: {lost[0]}") from None
        raise


@contextmanager
def _stop_signals() -> Generator[None]:
    """Raise StopSignal in this thread, the main one, at a first SIGTERM; later ones are ignored.

    Elsewhere than in a main thread, signals are somebody else's.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise StopSignal

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
        # Signals after Ray, which installs a handler of its own.
        with (
            ray_session(call.recipe, address),
            _stop_signals(),
            _pool(call, ledger, reporter) as pool,
        ):
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
def _pool(call: PlannedCall, ledger: Ledger, reporter: Reporter) -> Generator[Any]:
    """Hold a pool of the recipe's gangs, and tell the reporter of its steps and troubles."""
    import ray
    from ray.exceptions import RayError

    from cluster.pool import GangPool, PoolProgress

    recipe = call.recipe
    actor = cast(Any, ray.remote(GangPool)).options(
        num_cpus=0, max_concurrency=10_000, max_restarts=POOL_RESTARTS, max_task_retries=-1
    )
    checkpoints = Checkpoints(ledger.store, call.model_fingerprint, ledger.epoch)
    pool = actor.remote(recipe, checkpoints, new_attempt())
    ended = threading.Event()

    def watch() -> None:
        warned, last = 0, False
        while not last:
            last = ended.wait(POLL_S)  # once more at the end
            try:
                now = cast(PoolProgress, ray.get(pool.progress.remote(), timeout=10))
            except (RayError, TimeoutError):
                continue
            reporter.stepped(now.steps_done, now.gangs_ready, now.gangs)
            for text in now.warnings[-(now.warned - warned) :] if now.warned > warned else ():
                reporter.noted(text)
            warned = now.warned

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    try:
        ray.get(pool.start.remote(), timeout=START_TIMEOUT_S)
        watcher.start()
        yield pool
    finally:
        try:
            ray.get(pool.stop.remote(), timeout=recipe.checkpoint.grace_s + STOP_TIMEOUT_S)
        except (RayError, TimeoutError):
            pass
        finally:
            ended.set()
            if watcher.ident:
                watcher.join(STOP_TIMEOUT_S)
            ray.kill(pool)
