"""The endpoint's page: files that hold no data, a client of the API like any other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

import jinja2
from fastapi import APIRouter, Response

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def make_page_routes(*, asks_key: bool) -> APIRouter:
    """Return the routes of the page, its style and its script; nobody needs a key for them.

    `asks_key` says whether the page is to ask for one before it calls the API.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_read("videos.html.j2")).render(asks_key=asks_key)
    files = {
        "/": ("text/html", page),
        "/page.css": ("text/css", _read("videos.css")),
        "/page.js": ("text/javascript", _read("videos.js")),
    }
    router = APIRouter(include_in_schema=False)
    for path, (kind, text) in files.items():
        router.add_api_route(path, _make_answer(kind, text), response_class=Response)
    return router


def _make_answer(kind: str, text: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(text, headers=HEADERS, media_type=kind)

    return answer


def _read(name: str) -> str:
    return (resources.files("jobs") / "templates" / name).read_text("utf-8")
