"""A run as lines of JSON, for whoever collects logs: one event a line.

Every line has `time` (ISO 8601, UTC), `level`, `event` and `output`; from `planned` on, also `run`,
the epoch that names it in OUTPUT/runs; and what is about a clip has `clip_id`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Self

from jobs.pace import Pace
from jobs.report.reasons import EXAMPLES
from pipeline.counts import add_counts
from pipeline.documents import Commit, Failure
from pipeline.plan import Plan

if TYPE_CHECKING:
    from jobs.plan import PlannedCall
    from jobs.render import RunResult
    from pipeline.request import RenderRequest

PROGRESS_EVERY_S = 60.0
Level = Literal["info", "warning", "error"]


class JsonReporter:
    """Writes what a run tells as JSON; use it as a context manager, as `ConsoleReporter`."""

    def __init__(self, output: str, write: Callable[[str], None]) -> None:
        """Write by `write`, a line at a time."""
        self._write = write
        self._always: dict[str, Any] = {"output": output}
        self._plan = Plan(())
        self._next_progress = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """End."""

    def planned(
        self, call: PlannedCall, done: int, requests: dict[str, RenderRequest], epoch: int
    ) -> None:
        """Write what there is to do, why rows were rejected, and which names look misspelt."""
        self._always["run"] = epoch
        plan = self._plan = call.plan
        self._log(
            "info", "planned", rows=plan.rows, clips=plan.clips, done=done,
            to_render=len(requests), rejected=plan.rejected, recipe=call.recipe.name,
        )  # fmt: skip
        for each in plan.reasons:
            self._log(
                "warning", "rejected", rows=each.count, reason=each.example, first_row=each.row,
                source=each.source,
            )  # fmt: skip
        for hint in (hint for table in plan.tables for hint in table.hints):
            self.noted(hint)

    def ended(self, outcome: Commit | Failure) -> None:
        """Write what became of a clip; of one that failed, also the first rows that ask for it."""
        if isinstance(outcome, Failure):
            rows = [
                {"id": row.name, "row": row.row, "source": row.source}
                for _, row in islice(self._plan.find_rows((outcome.clip_id,)), EXAMPLES)
            ]
            self._log(
                "error", "failed", clip_id=outcome.clip_id, stage=outcome.stage,
                reason=outcome.reason, attempts=outcome.attempts, rows=rows,
                num_rows=self._plan.count_rows(outcome.clip_id),
            )  # fmt: skip
        else:
            self._log(
                "info", "committed", clip_id=outcome.clip_id, key=outcome.video.key,
                attempts=outcome.attempts, device_seconds=round(outcome.device_seconds, 3),
                **{f"{stage}_s": round(seconds, 3) for stage, seconds in outcome.timings.items()},
            )  # fmt: skip

    def noted(self, text: str) -> None:
        """Write what happened beside the clips."""
        self._log("warning", "note", text=text)

    def stepped(self, steps_done: int, gangs_ready: int, gangs: int, pace: Pace) -> None:
        """Write how far the run is, once a minute."""
        if time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PROGRESS_EVERY_S
            left_s = None if pace.left_s is None else round(pace.left_s)
            self._log(
                "info", "progress", steps=steps_done, gangs_ready=gangs_ready, gangs=gangs,
                left_s=left_s,
            )  # fmt: skip

    def broken(self, error: Exception) -> None:
        """Write why the run can't go on."""
        self._log("error", "broken", text=str(error))

    def refused(self, error: Exception, exit_code: int) -> None:
        """Write why the call is wrong, which nothing was rendered for."""
        self._log("error", "refused", exit_code=exit_code, error=str(error))

    def finished(self, result: RunResult) -> None:
        """Write why rows failed, and how the run ended: its tables' rows, then the others'."""
        for each in result.failures:
            self._log(
                "error", "failures", rows=each.rows, stage=each.stage, reason=each.reason,
                ids=each.ids,
            )  # fmt: skip
        self._log(
            "info", "finished", ended_by=result.ended_by, rendered=result.rendered,
            failed_now=result.failed, given_up=result.given_up, seconds=round(result.seconds, 1),
            **result.status.model_dump(), other_tables=len(result.others),
            others=add_counts(result.others).model_dump(),
        )  # fmt: skip

    def _log(self, level: Level, event: str, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "level": level, "event": event, **self._always, **fields}
        self._write(json.dumps(line, ensure_ascii=False))
