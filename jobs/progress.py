"""How a run shows itself: live bars on a terminal, plain lines elsewhere, and a summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from pipeline.documents import Commit, Failure, OutputStatus
from pipeline.lease import LeaseRecord
from pipeline.plan import Plan
from pipeline.request import RenderRequest

if TYPE_CHECKING:  # planning shows its result without what rendering needs
    from jobs.clean import Kind
    from jobs.plan import PlannedCall
    from jobs.render import RunResult

LINE_EVERY_S = 15.0
REASONS_SHOWN = 8


class ConsoleReporter:
    """Shows a run on a console; use it as a context manager."""

    def __init__(self, console: Console, complain: Callable[[str], None]) -> None:
        """Show nothing yet; `complain` shows an error."""
        self._console, self._complain = console, complain
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, detail="")
        self._done = self._failed = self._rejected = 0
        self._clips = self._steps = 0
        self._first: tuple[float, int] | None = None
        self._detail = ""
        self._last_line_at = time.monotonic()

    def __enter__(self) -> ConsoleReporter:
        """Begin to show the bar, on a terminal."""
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        if self._console.is_terminal:  # elsewhere it would print an empty line
            self._bar.stop()

    def planned(
        self, call: PlannedCall, done: int, requests: dict[str, RenderRequest], epoch: int
    ) -> None:
        """Say what there is to do."""
        plan = call.plan
        self._rejected = plan.rejected
        self._clips = len(requests)
        self._steps = sum(each.num_inference_steps for each in requests.values())
        self._console.print(
            f"{_count(plan.rows, 'row')}, {_count(plan.clips, 'clip')}: {done} done before, "
            f"{len(requests)} to render"
            + (f", {_count(plan.rejected, 'row')} rejected" if plan.rejected else "")
            + f" (recipe {call.recipe.name})",
            highlight=False,
            markup=False,
        )
        for hint in (hint for table in plan.tables for hint in table.hints):
            self.noted(hint)
        if not requests:
            return
        self._bar.update(self._task, total=self._clips, description="loading models")
        if not self._console.is_terminal:
            self._console.print("loading models ...")

    def ended(self, outcome: Commit | Failure) -> None:
        """Count a clip; show a failure at once."""
        self._done += isinstance(outcome, Commit)
        if isinstance(outcome, Failure):
            self._failed += 1
            self._console.print(
                f"failed: {outcome.clip_id[:16]} in {outcome.stage}: {outcome.reason}",
                style="red",
                highlight=False,
                markup=False,
            )
        self._bar.update(self._task, completed=self._done + self._failed)
        self._show(force=self._done + self._failed == self._clips)

    def noted(self, text: str) -> None:
        """Show what happened beside the clips."""
        self._console.print(
            f"note: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )

    def stepped(self, steps_done: int, gangs_ready: int, gangs: int) -> None:
        """Show the rate of steps and the time that is left."""
        now = time.monotonic()
        if self._first is None:
            self._bar.update(self._task, detail=f"{gangs_ready} of {gangs} gangs ready")
            if steps_done:
                self._first = (now, steps_done)
                self._bar.update(self._task, description="rendering")
            return
        since, steps_then = self._first
        rate = (steps_done - steps_then) / max(now - since, 1e-3)
        left_s = max(self._steps - steps_done, 0) / max(rate, 1e-6)
        self._detail = f"{rate:.1f} steps/s, ETA {_duration(left_s)}" if rate else ""
        self._show()

    def broken(self, error: Exception) -> None:
        """Show why the run can't go on."""
        self._complain(f"{error}\nWhat is committed stays; the same command goes on from here.")

    def finished(self, result: RunResult) -> None:
        """Show the summary."""
        print_summary(self._console, result)
        if result.plan.rejected:
            print_rejects(self._console, result.plan)

    def _show(self, *, force: bool = False) -> None:
        bad = "".join(
            f", {count} {word}"
            for count, word in ((self._failed, "failed"), (self._rejected, "rejected"))
            if count
        )
        self._bar.update(self._task, detail=f"{self._detail}{bad}")
        now = time.monotonic()
        if not self._console.is_terminal and (force or now - self._last_line_at > LINE_EVERY_S):
            self._last_line_at = now
            self._console.print(
                f"{self._done}/{self._clips} clips done{bad}; {self._detail}", highlight=False
            )


def print_summary(console: Console, result: RunResult) -> None:
    """Say how a run ended and where to look."""
    status = result.status
    table = Table.grid(padding=(0, 2))
    took = _duration(result.seconds)
    table.add_row("rendered", f"{_count(result.rendered, 'clip')} in {took}")
    _add_states(table, status)
    places = {"videos": "clips/", "manifest": "manifest/*.parquet", "review": "index.html"}
    if result.plan.rejected:
        places["rejects"] = "rejects/*.parquet"
    for name, place in places.items():
        table.add_row(name, escape(f"{result.output}/{place}"))
    console.print(table, highlight=False, soft_wrap=True)
    if result.ended_by == "SIGTERM":
        console.print("Stopped and saved. The same command goes on from here.", style="yellow")
    elif result.ended_by:
        console.print("Interrupted. The same command goes on from here.", style="yellow")
    elif not (result.rendered or result.failed or result.given_up):
        ended = "every row has its end" if not status.remaining else "the clips asked for are done"
        console.print(f"Nothing to do: {ended}.", style="green")


def print_status(
    console: Console, output: str, status: OutputStatus, lease: LeaseRecord | None = None
) -> None:
    """Show what an output holds, and which run writes it."""
    console.print(tabulate_status(output, status, lease), highlight=False, soft_wrap=True)


def tabulate_status(output: str, status: OutputStatus, lease: LeaseRecord | None) -> Table:
    """Return what an output holds, and which run writes it, a line each."""
    table = Table.grid(padding=(0, 2))
    table.add_row("output", escape(output))
    table.add_row("rows", f"{status.rows:,}")
    _add_states(table, status)
    table.add_row("clips", f"{status.clips_committed:,} of {status.clips:,} committed")
    if lease and not lease.is_over():
        table.add_row("writing", escape(str(lease)))
    return table


def print_garbage(console: Console, kinds: Sequence[Kind], *, removed: bool) -> None:
    """Show what there was to clean, and what became of it."""
    table = Table.grid(padding=(0, 2))
    for kind in kinds:
        fate = "kept (--unfinished)" if not kind.goes else "removed" if removed else ""
        table.add_row(
            kind.name,
            _count(kind.objects, "object"),
            decimal(kind.size_bytes),
            fate if kind.objects else "",
        )
    console.print(table, highlight=False, soft_wrap=True)
    if not removed and any(kind.objects for kind in kinds if kind.goes):
        console.print("Nothing was removed: --yes removes it.", style="yellow")


def print_plan(console: Console, call: PlannedCall, done: int | None) -> None:
    """Show what tables ask for."""
    plan = call.plan
    table = Table.grid(padding=(0, 2))
    rows: list[tuple[str, str]] = [
        ("rows", f"{plan.rows:,}"),
        ("valid", f"{plan.valid:,}"),
        ("rejected", f"{plan.rejected:,}"),
        ("duplicates", f"{plan.duplicates:,} (rows that ask for a clip already asked for)"),
        ("clips", f"{plan.clips:,}"),
        ("frames", f"{plan.frames:,} ({_duration(plan.duration_s)} of video)"),
        ("pixels", f"{plan.pixels:,}"),
    ]
    if done is not None:
        rows[-2:-2] = [
            ("already done", f"{done:,}"),
            ("to render", f"{plan.clips - done:,}"),
        ]
    split = call.split()
    if len(split) > 1:
        rows += [(f"gang {name}", _count(clips, "clip")) for name, clips in split.items()]
    for name, value in rows:
        table.add_row(escape(name), value)
    console.print(table, highlight=False)
    for hint in (hint for each in plan.tables for hint in each.hints):
        console.print(f"note: {hint}", style="yellow", highlight=False, markup=False)
    print_rejects(console, plan)


def print_rejects(console: Console, plan: Plan) -> None:
    """Show why rows are rejected, the most frequent reasons first."""
    for reason in plan.reasons[:REASONS_SHOWN]:
        console.print(
            f"rejected {_count(reason.count, 'row')}: {reason.example} "
            f"(row {reason.row} of {reason.source}, counted from 0)",
            style="yellow",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if len(plan.reasons) > REASONS_SHOWN:
        console.print(f"and {len(plan.reasons) - REASONS_SHOWN} more reasons", style="yellow")


def _add_states(table: Table, status: OutputStatus) -> None:
    table.add_row("committed", f"{_count(status.committed, 'row')}")
    for state in ("failed", "rejected", "remaining"):
        count = getattr(status, state)
        if count:
            table.add_row(state, _count(count, "row"))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds)))
