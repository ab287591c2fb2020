"""Amounts as people read them: one unit of device time for a whole report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A unit of device time."""

    name: str
    seconds: float

    def show(self, device_seconds: float) -> str:
        """Return so many device-seconds in this unit, without its name."""
        return f"{device_seconds / self.seconds:,.2f}"


SECONDS, MINUTES = Unit("device-seconds", 1.0), Unit("device-minutes", 60.0)
HOURS = Unit("device-hours", 3600.0)


def find_unit(device_seconds: float) -> Unit:
    """Return the unit in which a report of so many device-seconds in all is read best."""
    return next((unit for unit in (HOURS, MINUTES) if device_seconds >= 2 * unit.seconds), SECONDS)


def show_duration(seconds: float) -> str:
    """Return a time as `12.5 s`, `3 min 20 s` or `7 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"
