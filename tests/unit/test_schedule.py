"""The queue: by class, then longest first, then by arrival; nothing lost."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.answers import ClipKey
from cluster.schedule import Schedule, Task, Turn, Urgency
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
    return Task(ClipKey("out", key), request, Turn() if urgency is Urgency.ONLINE else None)


def drain(schedule: Schedule, room: int | None = None) -> list[Task]:
    tasks: list[Task] = []
    while (task := schedule.take(room)) is not None:
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
    assert [task.key.clip_id for task in drain(schedule)] == ["urgent", "long", "short"]


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


def test_a_class_is_taken_from_first_or_alone() -> None:
    schedule = Schedule()
    for key in ("batch", "online"):
        schedule.add(make_task(key, urgency=Urgency[key.upper()]))
    assert schedule.has(None, Urgency.ONLINE)
    first = schedule.take(None, (Urgency.BATCH, Urgency.ONLINE))
    assert first
    assert first.key.clip_id == "batch"
    assert schedule.take(None, (Urgency.BATCH,)) is None
    assert schedule.take(None, (Urgency.ONLINE,))
    assert not schedule.has(None, Urgency.ONLINE)


@given(st.lists(st.tuples(st.sampled_from("aaaabc"), st.sampled_from([80, 320])), max_size=40))
def test_owners_take_turns(asked: list[tuple[str, int]]) -> None:
    """Whoever waits for gangs of a room sees at most one clip of each other owner go before each
    of theirs, whatever they wait for elsewhere."""
    schedule = Schedule()
    for place, (owner, room) in enumerate(asked):
        task = make_task(str(place), urgency=Urgency.ONLINE)
        schedule.add(replace(task, turn=Turn(owner), room=room))
    for room in (80, 320):
        owners = [owner for owner, each in asked if each == room]
        check_turns(owners, [each.turn.owner for each in drain(schedule, room) if each.turn])


def test_who_comes_later_takes_turns_with_who_waits_whatever_went_elsewhere() -> None:
    schedule = Schedule()
    for place in range(4):
        schedule.add(replace(make_task(f"a{place}"), key=ClipKey("a", f"a{place}"), room=80))
    taken = [schedule.take(80) for _ in range(2)]
    schedule.add(replace(make_task("long"), key=ClipKey("a", "long"), room=320))
    taken.append(schedule.take(320))
    assert all(taken)
    for place in range(3):
        schedule.add(replace(make_task(f"b{place}"), key=ClipKey("b", f"b{place}"), room=80))
    owners = [task.key.output for task in drain(schedule, 80)]
    assert owners[:4] in (["a", "b", "a", "b"], ["b", "a", "b", "a"])


def test_clips_that_nobody_wants_cost_their_owner_no_turn() -> None:
    schedule = Schedule()
    unwanted = [ClipKey("a", str(place)) for place in range(20)]
    wanted = [
        ClipKey(owner, f"new {place}") for owner, n in (("b", 4), ("a", 2)) for place in range(n)
    ]
    for key in (*unwanted, *wanted):
        schedule.add(replace(make_task(""), key=key))
    order: list[str] = []
    while task := schedule.take(is_wanted=lambda task: task.key in wanted):
        order.append(task.key.output)
    assert order in (["a", "b", "a", "b", "b", "b"], ["b", "a", "b", "a", "b", "b"])
    assert len(schedule) == 0


def check_turns(owners: list[str], order: list[str]) -> None:
    assert sorted(order) == sorted(owners)
    for owner in set(owners):
        places = [place for place, each in enumerate(order) if each == owner]
        for nth, place in enumerate(places, 1):
            others = order[:place]
            assert all(others.count(each) <= nth for each in set(others) - {owner})


def test_outputs_take_turns_each_with_its_longest_first() -> None:
    schedule = Schedule()
    for output, frames in (("a", 33), ("a", 17), ("a", 65), ("b", 9), ("b", 5)):
        task = make_task(f"{output}{frames}", frames)
        schedule.add(replace(task, key=ClipKey(output, task.key.clip_id)))
    order = [task.key.clip_id for task in drain(schedule)]
    assert order == ["a65", "b9", "a33", "b5", "a17"]


def test_a_priority_is_among_an_owners_own() -> None:
    schedule = Schedule()
    for name, turn in (
        ("low", Turn("a", 0)),
        ("other", Turn("b", 0)),
        ("high", Turn("a", 9)),
        ("also high", Turn("a", 9)),
    ):
        schedule.add(replace(make_task(name, urgency=Urgency.ONLINE), turn=turn))
    order = [task.key.clip_id for task in drain(schedule)]
    assert order == ["high", "other", "also high", "low"]


def test_who_comes_later_is_not_behind_all_that_waits() -> None:
    schedule = Schedule()
    for place in range(5):
        schedule.add(replace(make_task(f"a{place}", urgency=Urgency.ONLINE), turn=Turn("a")))
    taken = schedule.take()
    schedule.add(replace(make_task("b", urgency=Urgency.ONLINE), turn=Turn("b")))
    assert taken
    assert [task.key.clip_id for task in drain(schedule)][:3] in (
        ["a1", "b", "a2"],
        ["b", "a1", "a2"],
    )


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
    online = [task for task in tasks if task.urgency is Urgency.ONLINE]  # of one owner: in turn
    batch = [task for task in tasks if task.urgency is Urgency.BATCH]
    expected = online + sorted(batch, key=lambda task: -task.request.num_frames)
    assert drain(schedule) == expected
    assert len(schedule) == 0
