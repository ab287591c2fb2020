"""The queue: by class, then longest first, then by arrival; nothing lost."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.schedule import Schedule, Task, Urgency
from pipeline.request import RenderRequest


def make_task(key: str, num_frames: int = 17, urgency: Urgency = Urgency.BATCH) -> Task:
    request = RenderRequest(
        prompt="a cup",
        width=64,
        height=64,
        num_frames=num_frames,
        fps=8.0,
        seed=1,
        num_inference_steps=4,
        guidance_scale=4.0,
    )
    return Task(key, request, urgency)


def drain(schedule: Schedule) -> list[Task]:
    tasks: list[Task] = []
    while (task := schedule.take()) is not None:
        tasks.append(task)
    return tasks


def test_urgent_first_then_longest() -> None:
    schedule = Schedule()
    for task in (
        make_task("short", 5),
        make_task("long", 33),
        make_task("urgent", 5, Urgency.ONLINE),
    ):
        schedule.add(task)
    assert [task.key for task in drain(schedule)] == ["urgent", "long", "short"]


def test_empty() -> None:
    assert Schedule().take() is None


def test_clips_for_gangs_of_different_room_wait_apart() -> None:
    schedule = Schedule()
    large, small = replace(make_task("large"), room=None), replace(make_task("small"), room=80)
    schedule.add(large)
    schedule.add(small)
    assert len(schedule) == 2
    assert schedule.take(320) is None
    assert schedule.take(80) == small
    assert schedule.take(80) is None
    assert schedule.take() == large


@given(
    st.lists(
        st.tuples(st.sampled_from([5, 9, 17, 33]), st.sampled_from(list(Urgency))), max_size=40
    )
)
def test_order_and_nothing_lost(kinds: list[tuple[int, Urgency]]) -> None:
    tasks = [make_task(str(place), *kind) for place, kind in enumerate(kinds)]
    schedule = Schedule()
    for task in tasks:
        schedule.add(task)
    assert len(schedule) == len(tasks)
    expected = sorted(
        tasks, key=lambda task: (task.urgency, -task.request.num_frames, int(task.key))
    )
    assert drain(schedule) == expected
    assert len(schedule) == 0
