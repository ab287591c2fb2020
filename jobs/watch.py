"""`rushes status --watch`: look at an output again and again, from its store alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cluster.pauses import pauses
from jobs.lines import align
from jobs.pace import Pace
from jobs.summaries import describe_status
from pipeline.documents import OutputStatus
from pipeline.errors import NoOutputError, UsageError
from pipeline.lease import LeaseRecord, read_lease
from pipeline.ledger import Ledger

Look = tuple[OutputStatus, LeaseRecord | None]


def watch_output(
    ledger: Ledger, console: Console, every_s: float, say: Callable[[str], None], *, as_json: bool
) -> None:
    """Show an output's counts until no row remains and no run writes it, or may be about to.

    A look waits as long as the last one took.

    An output that isn't there yet, or has no rows yet, is waited for, and so is a storage that goes
    away: a terminal shows it, elsewhere `say` is told.

    Raises:
        UsageError: the place can't be read at the first look.
    """
    if as_json or not console.is_terminal:
        _print_changes(ledger, console, every_s, say, as_json=as_json)
    else:
        _show_live(ledger, console, every_s)


def _print_changes(
    ledger: Ledger, console: Console, every_s: float, say: Callable[[str], None], *, as_json: bool
) -> None:
    before: OutputStatus | None = None
    said = ""
    for look in _look_on(ledger, every_s):
        if isinstance(look, str):
            if look != said:
                say(look)
            said = look
            continue
        said, (status, _) = "", look
        if status != before:
            text = status.model_dump_json() if as_json else _describe(status)
            console.print(text, highlight=False, markup=False, soft_wrap=True)
            before = status


def _show_live(ledger: Ledger, console: Console, every_s: float) -> None:
    pace = Pace()
    shown = Text()
    with Live(console=console, auto_refresh=False) as live:
        for look in _look_on(ledger, every_s):
            if isinstance(look, str):
                live.update(Text("\n").join(filter(None, (shown, Text(look)))), refresh=True)
                continue
            rows, left = look[0].rows, look[0].remaining
            pace.look(time.monotonic(), rows - left, left, rows)
            shown = _describe_live(ledger.store.uri, *look, pace)
            live.update(shown, refresh=True)


def _look_on(ledger: Ledger, every_s: float) -> Iterator[Look | str]:
    """Yield look after look until all is at its end; of one that shows nothing, why.

    Raises:
        UsageError: the place can't be read at the first look.
    """
    away, longer, is_first = "", pauses(), True
    writer = _Writer()
    while True:
        began = time.monotonic()
        try:
            look = ledger.status(), read_lease(ledger.store)
        except NoOutputError as error:
            look = f"{error}; waiting for one"
        except (OSError, UsageError) as error:
            if is_first or not isinstance(error.__cause__ or error, OSError):
                raise
            away = away or f"storage away since {datetime.now(UTC):%H:%M:%S} UTC: {error}"
            yield away
            time.sleep(next(longer))
            continue
        yield look
        if not isinstance(look, str):
            is_written = writer.is_there(look[1])
            if look[0].rows and not look[0].remaining and not is_written:
                return
        away, longer, is_first = "", pauses(), False
        _pause(began, every_s)


@dataclass
class _Writer:
    """Whether a run writes the output: it may have rows to save yet, or may try some again."""

    signs: tuple[int, int] = (0, 0)
    """The last epoch and sign of life that were seen."""
    heard_at: float = 0.0

    def is_there(self, lease: LeaseRecord | None) -> bool:
        """Return whether the holder of a lease, as it was just read, is to be reckoned with."""
        if lease is None or lease.is_over():
            return False
        signs = lease.epoch, lease.signs
        if signs != self.signs:
            self.signs, self.heard_at = signs, time.monotonic()
        return time.monotonic() < self.heard_at + lease.limit_s


def _pause(began: float, every_s: float) -> None:
    time.sleep(max(every_s, time.monotonic() - began))


def _describe_live(
    output: str, status: OutputStatus, lease: LeaseRecord | None, pace: Pace
) -> Text:
    lines = describe_status(output, status, lease)
    if status.remaining:
        left = f", ETA {timedelta(seconds=round(pace.left_s))}" if pace.left_s else ""
        lines.append(("pace", f"{pace.rate * 3600:,.0f} rows an hour{left}"))
    return Text(align(lines))


def _describe(status: OutputStatus) -> str:
    counts = (
        f"{getattr(status, state):,} {state}" for state in ("committed", "failed", "rejected")
    )
    return f"{status.rows:,} rows: {', '.join(counts)}, {status.remaining:,} remaining"
