"""A run's record, written while it goes: what it has brought, what it took, how it ended."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Literal

from jobs.repeat import repeated
from jobs.run import PoolUse
from pipeline.documents import Commit, Failure
from pipeline.runs import RunEnd, RunRecord, put_run
from pipeline.store import ObjectStore

MAX_REASON_CHARS = 500
KEEP_S = 10.0
"""How often a run's use is written down: if it dies, nobody else knows what it held."""


class Run:
    """One run as it goes; `recorded` writes down what it takes, and its end."""

    def __init__(self, store: ObjectStore) -> None:
        """Write nothing yet."""
        self.rendered = 0
        self.failed = 0
        self.stopped_by: Literal["Ctrl-C", "SIGTERM", "SIGHUP"] | None = None
        self.use = PoolUse()
        self._store = store
        self._record: RunRecord | None = None

    def begin(self, epoch: int, recipe: str, clips: int) -> None:
        """Write down that this run, of this lease, begins to render so many clips."""
        self._record = RunRecord(epoch=epoch, recipe=recipe, clips=clips)
        put_run(self._store, self._record)

    def count(self, outcome: Commit | Failure) -> None:
        """Count a clip's end."""
        self.rendered += isinstance(outcome, Commit)
        self.failed += isinstance(outcome, Failure)

    @contextmanager
    def recorded(self, say: Callable[[str], None]) -> Generator[None]:
        """Write down how the block ended, if the run began to render; any error goes on its way.

        A record that can't be written is told to `say` and stops nothing.
        """
        try:
            with repeated(self._keep, KEEP_S, "record"):
                yield
        except KeyboardInterrupt:
            self._end(self.stopped_by or "Ctrl-C", "", say)
            raise
        except BaseException as error:
            self._end("broken", str(error) or type(error).__name__, say)
            raise
        self._end(self.stopped_by or "done", "", say)

    def _keep(self) -> None:
        if self._record:
            with suppress(Exception):  # the next may get through
                put_run(self._store, self._describe(self._record))

    def _describe(self, record: RunRecord, **changes: Any) -> RunRecord:
        now = {
            "committed": self.rendered,
            "failed": self.failed,
            "gangs_lost": self.use.gangs_lost,
            "device_seconds": self.use.device_seconds,
        }
        return record.model_copy(update=now | changes)

    def _end(self, ended: RunEnd, reason: str, say: Callable[[str], None]) -> None:
        if self._record is None:
            return
        reason = reason.removeprefix("the run broke: ")[:MAX_REASON_CHARS]
        end = self._describe(self._record, ended_at=datetime.now(UTC), ended=ended, reason=reason)
        try:
            put_run(self._store, end)
        except Exception as error:  # noqa: BLE001 - how the run ended counts, not this
            say(f"how this run ended could not be written down: {type(error).__name__}: {error}")
