"""What other sites' pages may do: nothing that changes anything.

Where nobody is asked for a key, a browser that reaches the endpoint would have it render for any
page that it shows: a form may be sent anywhere. Browsers say where a call comes from, programs say
nothing. The check is that of Go's `net/http.CrossOriginProtection`.
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from jobs.api.wire import ApiError

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OWN_PAGES = ("same-origin", "none")


def check_origin(method: str, headers: Headers) -> None:
    """Check that a call that may change something is not another site's page's.

    Raises:
        ApiError: it is.
    """
    if method in _SAFE_METHODS:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    is_own = (
        site in _OWN_PAGES
        if site  # left out where a connection is no secure one
        else origin is None or _find_host(origin) == headers.get("host")
    )
    if not is_own:
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            "another site's page may not call an endpoint that asks for no key; call it from a "
            "program, or serve with API keys",
            code="cross_origin",
        )


def _find_host(origin: str) -> str:
    """Return an origin's host and port; nothing where it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
