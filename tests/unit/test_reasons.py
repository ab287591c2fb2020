"""Which reasons are the same one."""

from __future__ import annotations

import pytest

from jobs.report.reasons import Reasons


def count_kinds(*reasons: str) -> int:
    found = Reasons()
    for number, reason in enumerate(reasons):
        found.add("denoise", reason, f"ad-{number}")
    return len(found.listed())


@pytest.mark.parametrize(
    "reasons",
    [
        ("lost 3 gangs, the last 'cpu-0'", "lost 2 gangs, the last 'cpu-11'"),
        ('no label "a b"', 'no label "c"'),
        ("width: got 65.5", "width: got 7"),
        ("clip 0123456789abcdef is gone", "clip fedcba9876543210 is gone"),
        ("('a', 'b') isn't there", "('c d', 'e') isn't there"),
        ("HTTPError: 503 after 3 tries", "HTTPError: 503 after 17 tries"),
    ],
)
def test_numbers_and_quotes_vary(reasons: tuple[str, ...]) -> None:
    assert count_kinds(*reasons) == 1


@pytest.mark.parametrize(
    "reasons",
    [
        (
            "couldn't decode token 5, wasn't found",
            "couldn't load the tokenizer, wasn't found",
        ),
        ('a 5" screen is not 4" wide', 'a 5" screen, or one 4" wide'),
        ("HTTPError: 404", "HTTPError: 500"),
        ("HfHubHTTPError: 404 for 'a'", "HfHubHTTPError: 503 for 'a'"),
        ("HTTP Error 404: no", "HTTP Error 503: no"),
        ("got HTTP 429", "got HTTP 500"),
    ],
)
def test_what_went_wrong_does_not(reasons: tuple[str, ...]) -> None:
    assert count_kinds(*reasons) == len(reasons)
