"""The endpoint is as its /openapi.json says, whatever it is sent: schemathesis makes up calls."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support.online import MINE, Server

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
EXAMPLES = 25


def test_no_answer_that_is_not_documented(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 21
    try:
        for operation in operations:
            check(operation)
    finally:
        with server.client() as client:
            for video in client.videos.list():
                client.videos.delete(video.id)
            for file in client.files.list():
                client.files.delete(file.id)


def check(operation: Any) -> None:
    """Call an operation in many ways; every answer is of a documented status, type and form."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def call(case: Any) -> None:
        case.call_and_validate(
            headers={"Authorization": f"Bearer {MINE}"},
            excluded_checks=[positive_data_acceptance],  # what a model can do is more than a type
        )

    call()
