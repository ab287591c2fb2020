"""The contact sheet in a real browser, from a disk and over HTTP, with real clips."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest

from jobs.contact_sheet import render_contact_sheet
from pipeline.recipe import FinishSpec
from pipeline.video import VideoWriter, write_poster
from tests.support.accessible import check_accessible

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>\u2028\"'`${1}"
)
PRODUCTS = ("Aurora bottle", "Trail shoe", "Cold brew")
PROMPTS = (
    "A matte steel bottle turns slowly on wet basalt, first light breaking behind it",
    "A runner's shoe lands in shallow water, droplets held in the air, low sun",
    "Cold brew poured over one large clear ice cube, a dark bar, a single warm lamp",
)


def write_media(folder: Path, row: int, width: int, height: int, num_frames: int) -> int:
    """Write a clip of a drifting light and its poster; return the clip's size in bytes."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:height, :width] / max(height, width)
    hue = np.array([[0.9, 0.35, 0.2], [0.2, 0.6, 0.85], [0.75, 0.6, 0.25]][row % 3])
    frames = []
    for k in range(num_frames):
        glow = np.exp(-(((x - 0.2 - k * 0.6 / num_frames) ** 2 + (y - 0.4) ** 2) * 14))
        light = (glow + 0.16 + 0.1 * y)[..., None] * (hue + glow[..., None] * 0.35)
        frames.append((np.clip(light, 0, 1) * 255).astype(np.uint8))
    clip = folder / "a1.mp4"
    with VideoWriter(clip, width, height, 8, FinishSpec(preset="ultrafast")) as writer:
        writer.write(np.stack(frames))
    write_poster(frames[num_frames // 2], folder / "a1.jpg", 85)
    return clip.stat().st_size


def manifest_row(output: Path, row: int) -> dict[str, Any]:
    width, height = ((192, 108), (108, 192), (128, 128))[row % 3]
    clip_id = f"{row:02x}" * 32
    folder = f"clips/{clip_id[:2]}/{clip_id}"
    size_bytes = write_media(output / folder, row, width, height, 16)
    return {
        "id": f"spring-{row:03d}",
        "clip_id": clip_id,
        "status": "committed",
        "uri": f"{output}/{folder}/a1.mp4",
        "poster_uri": f"{output}/{folder}/a1.jpg",
        "width": width,
        "height": height,
        "num_frames": 16,
        "fps": 8.0,
        "duration_s": 2.0,
        "prompt": PROMPTS[row % 3],
        "negative_prompt": "text, watermark",
        "seed": 9_000_000_000_000_000_001 + row,
        "num_inference_steps": 20,
        "guidance_scale": 5.0,
        "model": "tiny",
        "model_fingerprint": "f" * 64,
        "layout": "1 rank",
        "attempt": "a1",
        "error": None,
        "sha256": "0" * 64,
        "size_bytes": size_bytes,
        "encode_s": 0.02,
        "denoise_s": 1.5 + row,
        "develop_s": 0.3,
        "upload_s": 0.01,
        "device_seconds": 1.8 + row,
        "product": PRODUCTS[row % 3],
        "locale": ("de-DE", "en-GB", "fr-FR", "ja-JP")[row % 4],
        "channels": [["feed", "story"], ["feed"], ["banner"]][row % 3],
        "launch": dt.datetime(2026, 11, 20 + row % 3, tzinfo=dt.UTC),
    }


def make_output(output: Path, num_committed: int = 9) -> Path:
    """Make an output folder: committed clips, a hostile one, and rows that ended otherwise."""
    rows = [manifest_row(output, row) for row in range(num_committed)]
    rows[1]["prompt"] = rows[1]["product"] = HOSTILE
    lost = {"uri": None, "poster_uri": None, "duration_s": None, "size_bytes": None}
    for word, error in (
        ("failed", "denoise: the gang was lost 3 times (rank 1 killed); raise pool.max_attempts"),
        ("rejected", "num_frames: got 50; this model takes 4k + 1; nearest is 49"),
        ("rejected", "num_frames: got 50; this model takes 4k + 1; nearest is 49"),
        ("remaining", None),
    ):
        row = len(rows)
        rows.append(rows[row % 3] | lost | {"id": f"spring-{row:03d}", "status": word})
        rows[-1] |= {"error": error, "prompt": PROMPTS[row % 3], "product": PRODUCTS[row % 3]}
    seeds = pa.array([row.pop("seed") for row in rows], pa.uint64())
    table = pa.Table.from_pylist(rows).append_column("seed", seeds)
    index = output / "index.html"
    index.write_text(render_contact_sheet([table], "Spring launch <2026>"), "utf-8")
    return index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("out") / "a run & more")


@pytest.fixture
def page(browser: Any, index: Path) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)
    troubles: list[str] = []
    requests: list[str] = []
    page.on("console", lambda m: troubles.append(m.text) if m.type != "log" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(index.as_uri())
    page.wait_for_selector(".card")
    yield page
    assert not troubles
    assert all(url.startswith(("file://", "data:")) for url in requests), requests
    context.close()


def wait_for(page: Any, condition: str) -> None:
    """Wait until a JavaScript condition holds; the page's policy bars `wait_for_function`."""
    end = time.monotonic() + 15
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def ids(page: Any) -> list[str]:
    return page.locator(".card .meta span:first-child").all_text_contents()


def test_every_row_is_a_card(page: Any):
    assert ids(page) == [f"spring-{row:03d}" for row in range(13)]
    assert page.locator("#count").inner_text() == "13 clips"
    assert page.locator("h1").inner_text() == "Spring launch <2026>"
    tabs = page.locator(".tab").all_inner_texts()
    assert [t.split() for t in tabs] == [
        ["All", "13"],
        ["Committed", "9"],
        ["Failed", "1"],
        ["Rejected", "2"],
        ["Remaining", "1"],
    ]
    wait_for(page, "[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.locator("video").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_can_read_it(page: Any, scheme: str):
    page.emulate_media(color_scheme=scheme)
    check_accessible(page)
    page.locator(".card .open").first.click()
    page.wait_for_selector("dialog[open]")
    check_accessible(page)


def test_what_went_wrong_is_told(page: Any):
    assert page.locator("#attention summary").inner_text() == (
        "3 rows need attention: 1 failed, 2 rejected"
    )
    page.locator("#attention summary").click()
    groups = page.locator("#attention li").all_inner_texts()
    assert len(groups) == 2
    assert "nearest is 49" in groups[0]
    page.get_by_role("button", name="spring-009", exact=True).click()
    assert "raise pool.max_attempts" in page.locator("#viewer-body").inner_text()


def test_filters_narrow_by_label_and_status(page: Any):
    page.locator(".value", has_text="de-DE").click()
    assert ids(page) == ["spring-000", "spring-004", "spring-008", "spring-009", "spring-012"]
    assert page.locator("#count").inner_text() == "5 of 13 clips"
    page.get_by_role("button", name="Rejected").click()
    assert page.locator("#empty").is_visible()
    page.get_by_role("button", name="Remove filter locale: de-DE").click()
    assert ids(page) == ["spring-010", "spring-011"]
    page.get_by_role("button", name="All", exact=False).first.click()
    page.locator(".value", has_text="banner").click()
    page.locator(".value", has_text="story").click()
    assert set(ids(page)) == {f"spring-{r:03d}" for r in range(13) if r % 3 in (0, 2)}


def test_search_and_sort(page: Any):
    page.keyboard.press("/")
    page.keyboard.type("ICE lamp")
    wait_for(page, "document.querySelectorAll('.card').length === 4")
    assert page.locator("#count").inner_text() == "4 of 13 clips"
    page.locator("#search").fill("no such words")
    page.locator("#empty-clear").click()
    assert page.locator(".card").count() == 13
    page.locator("#sort").select_option(label="Most device time")
    assert ids(page)[0] == "spring-008"
    page.locator("#sort").select_option(label="locale")
    assert ids(page)[-1] == "spring-007"


def test_posters_and_videos_load_over_http(browser: Any, index: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=index.parents[1])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/{quote(index.parent.name)}/index.html")
        page.wait_for_selector(".card")
        wait_for(page, "[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.locator(".card img").count() == 9
        page.locator(".card").first.hover()
        wait_for(page, "document.querySelector('.card video')?.currentTime > 0.2")
        page.close()
        server.shutdown()


def test_hover_and_focus_play_one_video(page: Any):
    page.locator(".card").first.hover()
    wait_for(page, "document.querySelector('.card video')?.currentTime > 0.2")
    video = page.locator(".card video")
    assert video.evaluate("v => [v.muted, v.loop, v.paused]") == [True, True, False]
    page.locator(".card").nth(2).hover()
    wait_for(page, "document.querySelector('[data-row=\"2\"] video')?.currentTime > 0.2")
    assert page.locator("video").count() == 1
    page.mouse.move(2, 2)
    assert page.locator("video").count() == 0
    page.locator("#sort").focus()
    page.keyboard.press("Shift+Tab")
    page.locator("#attention summary").focus()
    page.keyboard.press("Tab")
    wait_for(page, "document.querySelector('[data-row=\"0\"] video')?.currentTime > 0.2")


def test_the_keyboard_reaches_everything(page: Any):
    page.locator("#attention summary").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    row = "document.activeElement.closest('.card')?.dataset.row"
    assert page.evaluate(row) == "2"
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    wait_for(page, "document.querySelector('#stage video').currentTime > 0.1")
    said = page.locator("#viewer-body").inner_text()
    for part in (PROMPTS[2], "9000000000000000003", "f" * 64, "2026-11-22 00:00:00Z", "banner"):
        assert part in said
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-id").inner_text() == "spring-003"
    assert page.locator("#stage video").count() == 1
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    wait_for(page, f"{row} === '3'")
    assert page.locator("#stage video").count() == 0
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button')].filter(b => b.checkVisibility() && "
        "!(b.ariaLabel || b.textContent.trim())).length"
    )
    assert unnamed == 0


def test_a_link_opens_its_clip(page: Any):
    page.locator(".card .open").nth(4).click()
    address = page.url
    assert address.endswith("#clip=spring-004")
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("#viewer[open]")
    assert page.locator("#viewer-id").inner_text() == "spring-004"


def test_hostile_words_are_only_words(page: Any):
    assert page.locator("script").count() == 2
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.locator(".card .prompt").nth(1).text_content() == HOSTILE
    page.locator(".card .open").nth(1).click()
    assert HOSTILE in page.locator("#viewer-body").text_content()
    assert page.evaluate("window.hacked") is None


def test_a_phone(page: Any):
    page.set_viewport_size({"width": 420, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.locator("#filters-open").click()
    page.locator(".value", has_text="fr-FR").click()
    page.keyboard.press("Escape")
    assert page.locator("#filters-count").inner_text() == "1"
    page.locator(".card .open").first.click()
    assert page.locator("#viewer-close").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_ten_thousand_rows_come_as_needed(browser: Any, index: Path, tmp_path: Path):
    count = 10_000
    table = pa.table(
        {
            "id": [f"row-{i}" for i in range(count)],
            "status": ["remaining"] * count,
            "prompt": [f"{PROMPTS[i % 3]}, take {i}" for i in range(count)],
            "take": list(range(count)),
        }
    )
    big = tmp_path / "index.html"
    big.write_text(render_contact_sheet([table], "Big"), "utf-8")
    page = browser.new_page()
    page.goto(big.as_uri())
    page.wait_for_selector(".card")
    assert 0 < page.locator(".card").count() <= 300
    assert page.locator("#count").inner_text() == "10,000 clips"
    before = page.locator(".card").count()
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    wait_for(page, f"document.querySelectorAll('.card').length > {before}")
    page.locator("#search").fill("take 9999")
    wait_for(page, "document.querySelectorAll('.card').length === 1")
    page.close()


def test_what_is_binary_or_long_is_no_filter(browser: Any, tmp_path: Path):
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "status": ["remaining"] * 3,
            "product": ["shoe", "hat", "hat"],
            "notes": ["brief", "long " * 1000, "other"],
            "thumbnail": [b"x" * 50_000, b"y" * 60_000, None],
        }
    )
    index = tmp_path / "index.html"
    index.write_text(render_contact_sheet([table], "Large labels"), "utf-8")
    page = browser.new_page()
    page.goto(index.as_uri())
    page.wait_for_selector(".card")
    assert page.locator("#facets summary").all_inner_texts() == ["product", "notes"]
    notes = page.locator("#facets details", has_text="notes").locator("label.value span")
    assert notes.all_inner_texts() == ["brief", "other"]
    page.locator("#facets label.value", has_text="brief").locator("input").check()
    assert page.locator("#count").inner_text() == "1 of 3 clips"
    page.locator(".card .open").first.click()
    assert "bytes, 50 kB" in page.locator("#viewer-body").inner_text()
    page.close()
