"""Collect a report from the store alone: rows, commits, failures, the lease and runs' records."""
# pyarrow carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from jobs.report.documents import DeviceUse, Report, RunSummary, StageTimes, Work
from jobs.report.labels import Breaker
from jobs.report.tally import Tally
from pipeline.lease import read_lease
from pipeline.ledger import Ledger
from pipeline.runs import RunRecord, read_runs
from pipeline.store import ObjectStore


@dataclass(frozen=True)
class Price:
    """What a device-hour costs."""

    hour: float | None = None
    """None where nobody said."""
    currency: str = "$"

    def cost(self, device_seconds: float) -> float | None:
        """Return what so many device-seconds cost."""
        return None if self.hour is None else device_seconds / 3600 * self.hour


@dataclass(frozen=True)
class Collected:
    """A report, and what its charts need besides."""

    report: Report
    committed_at: NDArray[np.float64]
    """When each clip was committed, in seconds since 1970, in order."""


def collect_report(store: ObjectStore, by: Sequence[str], price: Price) -> Collected:
    """Count what an output holds; `by` names labels to break down by, or is empty.

    Raises:
        UsageError: there is no output here, or no such label.
    """
    ledger = Ledger(store)
    identity = ledger.read_output()
    records, lease = read_runs(store), read_lease(store)
    breaker = Breaker(ledger, by)
    tally = Tally(ledger, records, breaker)
    for name, parts in ledger.load_rows():
        for part in parts:
            tally.add_part(name, part)
    tally.add_others()
    writing = lease.epoch if lease and not lease.is_over() else None
    runs = tuple(_summarize(number, each, tally, writing) for number, each in enumerate(records))
    committed_at = np.sort(np.asarray(tally.committed_at, np.float64))
    device_seconds = sum(tally.device_seconds)
    report = Report(
        output=store.uri,
        model=identity.model,
        recipe=identity.recipe,
        rows=tally.rows.status(),
        work=Work(
            clips=len(tally.device_seconds),
            video_s=sum(tally.video_s),
            device_seconds=device_seconds,
            cost=price.cost(device_seconds),
        ),
        first_commit_at=_time(committed_at[:1]),
        last_commit_at=_time(committed_at[-1:]),
        price=price.hour,
        currency=price.currency,
        failures=tally.failures.listed(),
        rejects=tally.rejects.listed(),
        labels=breaker.listed(price.cost),
        stages=tuple(_time_stages(tally)),
        slowest=tally.slowest,
        num_retried=tally.num_retried,
        retried=tally.retried,
        runs=runs,
        use=_compare_use(runs, price),
    )
    return Collected(report, committed_at)


def _summarize(number: int, record: RunRecord, tally: Tally, writing: int | None) -> RunSummary:
    said = record.model_dump(exclude={"committed", "failed"})
    return RunSummary(
        **said,
        writing=record.ended is None and record.epoch == writing,
        committed=tally.run_clips[number],
        clip_device_seconds=tally.run_device_seconds[number],
    )


def _time_stages(tally: Tally) -> list[StageTimes]:
    """Return each stage's seconds; a stage that no commit speaks of is left out."""
    times: list[StageTimes] = []
    for stage, every in tally.stage_s.items():
        seconds = np.asarray(every, np.float64)
        seconds = seconds[~np.isnan(seconds)]
        if seconds.size:
            median_s, p95_s = np.percentile(seconds, (50, 95))
            times.append(
                StageTimes(
                    stage=stage,
                    clips=seconds.size,
                    median_s=float(median_s),
                    p95_s=float(p95_s),
                    total_s=float(seconds.sum()),
                )
            )
    return times


def _compare_use(runs: Sequence[RunSummary], price: Price) -> DeviceUse | None:
    known = [each for each in runs if each.ended or each.device_seconds]
    if not known:
        return None
    used = sum(each.device_seconds for each in known)
    ideal = sum(each.clip_device_seconds for each in known)
    return DeviceUse(
        runs=len(known),
        used=used,
        ideal=ideal,
        ratio=ideal / used if used else None,
        cost=price.cost(used),
    )


def _time(seconds: NDArray[np.float64]) -> datetime | None:
    return datetime.fromtimestamp(float(seconds[0]), UTC) if seconds.size else None
