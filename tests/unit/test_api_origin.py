"""Without keys, other sites' pages may change nothing; programs and its own page may."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from jobs.api.origin import check_origin
from jobs.api.wire import ApiError

HOST = "127.0.0.1:8000"


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", {}),  # a program
        ("POST", {"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy"}),
        ("DELETE", {"sec-fetch-site": "none"}),
        ("POST", {"origin": f"http://{HOST}"}),  # a browser, by an address that is no secure one
        ("GET", {"sec-fetch-site": "cross-site", "origin": "https://elsewhere.example"}),
    ],
)
def test_what_may_pass(method: str, headers: dict[str, str]) -> None:
    check_origin(method, Headers({"host": HOST, **headers}))


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "origin": f"http://{HOST}"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:3000"},
        {"origin": "https://elsewhere.example"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "null"},
        {"origin": "http://["},
    ],
)
def test_what_may_not(method: str, headers: dict[str, str]) -> None:
    with pytest.raises(ApiError) as raised:
        check_origin(method, Headers({"host": HOST, **headers}))
    assert (raised.value.status, raised.value.body.code) == (403, "cross_origin")
