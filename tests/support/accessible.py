"""What a screen reader or the keyboard can't make sense of on a page, found by axe-core."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe


def check_accessible(page: Any) -> None:
    """Assert that a page, as it stands, breaks none of axe's rules (WCAG 2 A and AA, and more)."""
    found: Any = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
