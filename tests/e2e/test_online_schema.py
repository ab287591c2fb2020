"""The endpoint is as its /openapi.json says, whatever it is sent: schemathesis makes up calls,
each alone and in sequences, where what one answers is asked for by the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.support.online import MINE, Server, make_lines

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
EXAMPLES = 25
SEQUENCES, STEPS = 30, 15
MADE = r"^/v1/(files|batches|videos(/\{video_id\}.*)?$)"
LISTS = r"^/v1/\w+$"
HEADERS = {"Authorization": f"Bearer {MINE}"}
QUICK = {"prompt": "a red ball", "num_inference_steps": 1}
EXCLUDED = [positive_data_acceptance]
"""What a model can do is more than a type."""


@pytest.fixture
def schema(server: Server) -> Iterator[Any]:
    yield schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    with server.client() as client:
        for video in list(client.videos.list()):
            client.videos.delete(video.id)
        for file in list(client.files.list()):
            client.files.delete(file.id)


def test_no_answer_that_is_not_documented(schema: Any) -> None:
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 21
    for operation in operations:
        check(operation)


def test_no_sequence_of_calls_is_answered_otherwise(schema: Any) -> None:
    schema.config.generation.update(modes=[GenerationMode.POSITIVE])
    made = schema.include(path_regex=MADE).exclude(path_regex=LISTS, method="GET")
    answered = Counter[tuple[str, int]]()

    class Sequences(made.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            """Have what is made be made, whenever Hypothesis does it: else nothing comes next."""
            case.headers.pop("idempotency-key", None)
            if case.operation.label == "POST /v1/videos":
                case.body = QUICK
            elif case.operation.label == "POST /v1/files":
                case.body = {"purpose": "batch", "file": make_lines(QUICK)}

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": HEADERS}

        def validate_response(self, response: Any, case: Any, **sent: Any) -> None:
            answered[case.operation.label, response.status_code] += 1
            case.validate_response(
                response,
                excluded_checks=[*EXCLUDED, negative_data_rejection],  # of bodies that aren't sent
                recorder=self.recorder,
                transport_kwargs=sent,
            )

    Sequences.run(
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
    )
    for linked in ("DELETE /v1/videos/{video_id}", "GET /v1/files/{file_id}/content",
                   "POST /v1/batches", "GET /v1/batches/{batch_id}"):  # fmt: skip
        assert answered[linked, 200], answered


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
            headers=HEADERS,
            excluded_checks=EXCLUDED,
        )

    call()
