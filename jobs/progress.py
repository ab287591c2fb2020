"""How a run shows itself: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from jobs.pace import Pace
from jobs.report.reasons import EXAMPLES
from jobs.summaries import (
    count_noun,
    describe_duration,
    print_failures,
    print_others,
    print_rejects,
    print_summary,
)
from pipeline.documents import Commit, Failure
from pipeline.plan import Plan
from pipeline.request import RenderRequest

if TYPE_CHECKING:  # planning shows its result without what rendering needs
    from jobs.plan import PlannedCall
    from jobs.render import RunResult

LINE_EVERY_S = 15.0


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
        self._done = self._failed = self._rejected = 0  # rows
        self._plan = Plan(())
        self._rows = 0  # of the clips to render
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
        plan = self._plan = call.plan
        self._rejected = plan.rejected
        self._rows = sum(map(plan.count_rows, requests))
        self._console.print(
            f"{count_noun(plan.rows, 'row')}, {count_noun(plan.clips, 'clip')}: "
            f"{done} done before, {len(requests)} to render"
            + (f", {count_noun(plan.rejected, 'row')} rejected" if plan.rejected else "")
            + f" (recipe {call.recipe.name})",
            highlight=False,
            markup=False,
        )
        for hint in (hint for table in plan.tables for hint in table.hints):
            self.noted(hint)
        if not requests:
            return
        self._bar.update(self._task, total=self._rows, description="loading models")
        if not self._console.is_terminal:
            self._console.print("loading models ...")

    def ended(self, outcome: Commit | Failure) -> None:
        """Count the rows that ask for a clip; show a failure, with the first of them, at once."""
        rows = self._plan.count_rows(outcome.clip_id)
        if isinstance(outcome, Failure):
            self._failed += rows
            for _, row in islice(self._plan.find_rows((outcome.clip_id,)), EXAMPLES):
                self._complain_of(f"{row} in {outcome.stage}: {outcome.reason}")
            if rows > EXAMPLES:
                more = count_noun(rows - EXAMPLES, "more row")
                self._complain_of(f"and {more} that ask for the same clip")
        else:
            self._done += rows
        self._bar.update(self._task, completed=self._done + self._failed)
        if is_over := self._done + self._failed == self._rows:
            self._detail = ""
        self._show(force=is_over)

    def noted(self, text: str) -> None:
        """Show what happened beside the clips."""
        self._console.print(
            f"note: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )

    def stepped(self, steps_done: int, gangs_ready: int, gangs: int, pace: Pace) -> None:
        """Show the rate of steps and the time that is left."""
        if not steps_done:
            self._bar.update(self._task, detail=f"{gangs_ready} of {gangs} gangs ready")
            return
        self._bar.update(self._task, description="rendering")
        self._detail = ""
        if pace.left_s is not None:
            self._detail = f"{pace.rate:.1f} steps/s, ETA {describe_duration(pace.left_s)}"
        self._show()

    def broken(self, error: Exception) -> None:
        """Show why the run can't go on."""
        self._complain(f"{error}\nWhat is committed stays; the same command goes on from here.")

    def finished(self, result: RunResult) -> None:
        """Show the summary."""
        print_summary(self._console, result)
        print_failures(self._console, result.failures)
        print_rejects(self._console, result.plan)
        print_others(self._console, result)

    def _complain_of(self, text: str) -> None:
        self._console.print(
            f"failed: {text}", style="red", highlight=False, markup=False, soft_wrap=True
        )

    def _show(self, *, force: bool = False) -> None:
        bad = "".join(
            f", {count} {word}"
            for count, word in ((self._failed, "failed"), (self._rejected, "rejected"))
            if count
        )
        # Two lines beside the bar: in one, counts would be cut on a terminal of 80 columns.
        lines = filter(None, (self._detail, bad.removeprefix(", ")))
        self._bar.update(self._task, detail="\n".join(lines))
        now = time.monotonic()
        if not self._console.is_terminal and (force or now - self._last_line_at > LINE_EVERY_S):
            self._last_line_at = now
            detail = f"; {self._detail}" if self._detail else ""
            self._console.print(
                f"{self._done}/{self._rows} rows done{bad}{detail}", highlight=False
            )
