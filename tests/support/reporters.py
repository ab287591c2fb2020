"""Reporters of runs for tests."""

from __future__ import annotations

from typing import Any


class Silent:
    """A reporter that shows nothing."""

    def planned(self, *what: Any) -> None: ...

    def noted(self, text: str) -> None: ...

    def stepped(self, *what: Any) -> None: ...

    def ended(self, outcome: object) -> None: ...
