"""The morning report in a real browser, from a disk, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.report.collect import Price
from jobs.report.write import write_report
from pipeline.store import ObjectStore
from tests.support.accessible import check_accessible
from tests.support.reported import HOSTILE, make_output


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "a night & more"
    make_output(ObjectStore(output))
    write_report(str(output), (), Price(2.5))
    return output / "report.html"


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme=request.param
    )
    page = context.new_page()
    page.set_default_timeout(15_000)
    troubles: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda asked: requests.append(asked.url))
    page.goto(report.as_uri())
    yield page
    assert not troubles, "the page's own policy refused something of it"
    assert all(url == report.as_uri() or url.startswith("data:") for url in requests), requests
    context.close()


def color_of(page: Any, selector: str, name: str) -> tuple[float, ...]:
    """Return a computed colour, red, green and blue from 0 to 255."""
    value: str = page.locator(selector).first.evaluate(
        "(element, name) => getComputedStyle(element)[name]", name
    )
    return tuple(float(part) for part in value[value.index("(") + 1 : -1].split(",")[:3])


def test_charts_have_the_colours_of_the_page(page: Any) -> None:
    ground = color_of(page, "html", "backgroundColor")
    ink = color_of(page, ".chart text", "fill")
    assert abs(sum(ground) - sum(ink)) > 450, "text stands out from its ground"
    assert color_of(page, ".chart .fill-bar", "fill") not in (ground, ink, (0.0, 0.0, 0.0))
    assert page.locator(".chart").count() == 6
    texts = page.locator(".chart text").all_text_contents()
    assert {"denoise", "bottle", "Clips committed over time, UTC; runs behind"} <= set(texts)


def test_charts_keep_their_words_inside(page: Any) -> None:
    assert page.evaluate(
        """[...document.querySelectorAll(".chart text")].filter(text => {
            const inner = text.getBoundingClientRect();
            const outer = text.closest("svg").getBoundingClientRect();
            return inner.left < outer.left || inner.right > outer.right
                || inner.top < outer.top || inner.bottom > outer.bottom;
        }).map(text => text.textContent)"""
    ) == []  # fmt: skip


def test_hostile_words_are_only_words(page: Any) -> None:
    assert page.locator("script, img").count() == 0
    assert page.get_by_role("cell", name=HOSTILE, exact=True).count() == 1
    assert page.evaluate("window.hacked") is None


def test_a_screen_reader_can_read_it(page: Any) -> None:
    check_accessible(page)


def test_what_is_told(page: Any) -> None:
    tiles = [" ".join(text.split()) for text in page.locator(".tiles > div").all_inner_texts()]
    assert tiles == [
        "rows committed 4 of 9",
        "rows failed 2 of 9",
        "rows rejected 2 of 9",
        "rows remaining 1 of 9",
        "clips 3 10.0 s of video",
        "device-minutes in clips 60.00 $2.50",
        "device-minutes held 118.33 $4.93, 2 of 3 runs",
        "of them in clips 50% 2 of 3 runs",
    ]
    assert page.get_by_role("link", name="ad-f").get_attribute("href").startswith("clips/")


@pytest.mark.parametrize("width", [420, 900, 1600])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
