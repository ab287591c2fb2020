"""What a screen reader or the keyboard can't make sense of on a page, found by axe-core."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe

_MOVES = """() => Promise.allSettled(document.getAnimations()
  .filter(each => each.effect.getComputedTiming().endTime !== Infinity)
  .map(each => each.finished))"""
"""Half a fade's contrast is nobody's."""


def check_accessible(page: Any) -> None:
    """Assert that a page, once it is still, breaks none of axe's rules (WCAG 2 A, AA and more)."""
    page.evaluate(_MOVES)
    found: Any = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
