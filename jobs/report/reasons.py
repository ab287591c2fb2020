"""`Reasons`: why rows came to nothing, the same reason of many rows as one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from jobs.report.documents import Problem

EXAMPLES = 5
_VARYING = re.compile(
    r"HTTP\w*(?: \w+)?:? (?P<code>[1-5]\d\d)\b"
    r"|(?<!\w)'[^']*'(?!\w)|(?<!\w)\"[^\"]*\"(?!\w)|\b[0-9a-f]{12,}\b|\d+(?:\.\d+)?"
)
"""Apostrophes quote nothing; what a server answered is no number among others."""


@dataclass
class _Reason:
    text: str
    rows: int = 0
    ids: list[str] = field(default_factory=list[str])


class Reasons:
    """Rows by why they came to nothing; reasons that differ in numbers and quotes are one."""

    def __init__(self) -> None:
        """Start with none."""
        self._found: dict[tuple[str | None, str], _Reason] = {}

    def add(self, stage: str | None, reason: str, row_id: str) -> None:
        """Count a row."""
        each = self._found.setdefault((stage, _find_kind(reason)), _Reason(reason))
        each.rows += 1
        if len(each.ids) < EXAMPLES:
            each.ids.append(row_id)

    def listed(self) -> tuple[Problem, ...]:
        """Return all of them, the most frequent first."""
        found = sorted(self._found.items(), key=lambda each: -each[1].rows)
        return tuple(
            Problem(stage=stage, reason=each.text, rows=each.rows, ids=tuple(each.ids))
            for (stage, _), each in found
        )


def _find_kind(reason: str) -> str:
    """Return what a reason has in common with those that are the same."""
    return _VARYING.sub(lambda found: found[0] if found["code"] else "#", reason)
