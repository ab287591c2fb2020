"""Render tables into an output: plan, resume, run, and write down what became of each row."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from jobs.pace import Pace
from jobs.plan import PlannedCall, find_done, plan_call
from jobs.record import Run
from jobs.report.documents import Problem
from jobs.report.reasons import Reasons
from jobs.results import write_results
from jobs.run import RunBrokenError, run_on_ray
from jobs.stop import StopSignal, break_off, find_stop
from pipeline.counts import add_counts
from pipeline.documents import Commit, Failure, RowCounts, TableStatus
from pipeline.errors import RunEndingError, UsageError
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.manifest import check_tables
from pipeline.plan import Plan
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

SLOW_S = 5.0
_PLANNING = (
    "planning: reading the tables and all of the model's files, whose content names the clips"
)


class Reporter(Protocol):
    """Who is told how a run goes."""

    def planned(
        self, call: PlannedCall, done: int, requests: dict[str, RenderRequest], epoch: int
    ) -> None:
        """Say what is asked, how many clips are done, which are left, and the run's epoch."""
        ...

    def ended(self, outcome: Commit | Failure) -> None:
        """Say what became of one clip."""
        ...

    def noted(self, text: str) -> None:
        """Say what happened beside the clips: a wait, a lost gang."""
        ...

    def stepped(self, steps_done: int, gangs_ready: int, gangs: int, pace: Pace) -> None:
        """Say how many denoising steps were made in this run; called about twice a second."""
        ...


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    status: RowCounts
    """Every row of the call's tables, by state."""
    output: str
    rendered: int
    failed: int
    plan: Plan
    """What the call's tables ask for, with why rows were rejected."""
    ended_by: Literal["Ctrl-C", "SIGTERM", "SIGHUP"] | None
    """What stopped it early."""
    given_up: int
    """Clips that failed before and were not tried again."""
    seconds: float
    failures: tuple[Problem, ...] = ()
    """Why clips failed, in this run or, of those that were given up, before."""
    others: tuple[TableStatus, ...] = ()
    """The output's other tables."""
    has_page: bool = True
    """Whether there are manifest and page: after SIGTERM or SIGHUP an earlier run's, if any."""


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

    Ctrl-C, or within `stop_signals` SIGTERM or SIGHUP, stops the run cleanly: what is committed
    stays, what is unfinished is saved, and the same call again goes on from there. After the latter
    two, which leave no time for them, manifest and page are as an earlier run left them. Before
    this run holds the lease, there is nothing to save: all are raised.

    Raises:
        StopSignal: SIGTERM or SIGHUP came while this planned, fetched the model or waited.
        UsageError: the call is wrong, or the output damaged; nothing was rendered.
        RunBrokenError: the run can't go on; what is committed stays.
    """
    began = time.monotonic()
    store = ObjectStore(output)
    store.locate_for_arrow("run.json")
    with _told_if_slow(reporter.noted):
        call = plan_call(tables, recipe)
    names = {table.name for table in call.plan.tables}
    requests = call.remaining(find_done(call, Ledger(store)), limit)
    if requests:
        from cluster.session import check_cluster

        check_cluster(recipe, address)
    Ledger(store).open_output(call.identity, may_claim=True)
    lease = Lease.acquire(store, recipe.lease.limit_s, wait=wait, say=reporter.noted)
    run = Run(store)
    with run.recorded(reporter.noted), _kept(lease, run):
        ledger = Ledger(store, lease.epoch)
        status, given_up, reasons = None, set[str](), Reasons()
        try:
            ledger.claim(call.identity)
            done = find_done(call, ledger)
            check_tables(ledger, besides=names)  # not once all is rendered
            requests = call.remaining(done, limit)
            given_up = _find_given_up(ledger, set(requests), recipe, retry=retry_failed)
            for key in given_up:
                del requests[key]
            for table in call.plan.tables:
                ledger.save_rows(table.name, table.rows, table.uri, table.locate)
            reporter.planned(call, len(done), requests, lease.epoch)
            if given_up:
                reporter.noted(_describe_given_up(len(given_up), recipe, retry=retry_failed))
                _add_reasons(reasons, ledger.latest_failures(given_up), call.plan)
            if requests:
                run.begin(lease.epoch, recipe.name, len(requests))
                left = set(requests)
                for outcome in run_on_ray(call, ledger, requests, reporter, address, run.use):
                    left.discard(outcome.clip_id)
                    run.count(outcome)
                    reporter.ended(outcome)
                    if isinstance(outcome, Failure):
                        _add_reasons(reasons, (outcome,), call.plan)
                if left:
                    lost = f"of {len(left)} clips nobody knows what became"
                    raise RunBrokenError(f"the run broke: {lost}")
            status = write_results(ledger, names)
        except StopSignal:  # seconds are left: the next run writes the manifest
            run.stopped_by = find_stop()
        except KeyboardInterrupt:
            run.stopped_by = "Ctrl-C"
            status = write_results(ledger, names)
        except RunBrokenError:
            with suppress(OSError, RunEndingError, UsageError):  # the store may be what broke
                write_results(ledger, names)
            raise
    has_page = status is not None or store.exists("index.html")
    status = status or ledger.status()
    return RunResult(
        status=add_counts(each for each in status.tables if each.name in names),
        output=store.uri,
        rendered=run.rendered,
        failed=run.failed,
        plan=call.plan,
        ended_by=run.stopped_by,
        given_up=len(given_up),
        seconds=time.monotonic() - began,
        failures=reasons.listed(),
        others=tuple(each for each in status.tables if each.name not in names),
        has_page=has_page,
    )


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


def _add_reasons(reasons: Reasons, failures: Iterable[Failure], plan: Plan) -> None:
    """Count the rows whose clips have failed."""
    found = {failure.clip_id: failure for failure in failures}
    for clip_id, row in plan.find_rows(found):
        reasons.add(found[clip_id].stage, found[clip_id].reason, row.name)


@contextmanager
def _told_if_slow(say: Callable[[str], None]) -> Generator[None]:
    """Say what is done, where it takes long: large weights are read in minutes."""
    slow = threading.Timer(SLOW_S, say, (_PLANNING,))
    slow.daemon = True
    slow.start()
    try:
        yield
    finally:
        slow.cancel()


@contextmanager
def _kept(lease: Lease, run: Run) -> Generator[None]:
    """Keep the lease for the block, which its loss, or a store that fails, ends.

    Raises:
        RunBrokenError: another run has taken over, the store failed, or what it holds turned out to
            be damaged after clips had come to their ends.
        UsageError: the same, before any had.
    """
    lost: list[str] = []

    def end(reason: str) -> None:
        lost.append(reason)
        break_off()

    try:
        with lease.kept(end):
            yield
    except (OSError, RunEndingError) as error:
        raise RunBrokenError(f"the run broke: {error}") from error
    except UsageError as error:
        if run.rendered or run.failed:
            raise RunBrokenError(f"the run broke: {error}") from error
        raise
    except KeyboardInterrupt:
        if lost:
            raise RunBrokenError(f"the run broke: {lost[0]}") from None
        raise
