"""What is said of a run that breaks: what went wrong, whatever Ray and Ray Data put around it."""

from __future__ import annotations

import pytest
import ray
from ray.exceptions import RayTaskError

from cluster.answers import PoolBrokenError, UnusableModelError
from jobs.run import RunBrokenError, _find_cause, _judge
from pipeline.errors import LeaseLostError, UsageError
from tests.support.pools import Breaking, ask_as_ray_data

NO_GANG = "no gang like single-0 can be started: single-0: weights: out of memory"
DEAD = "The actor died unexpectedly before finishing this task."


@pytest.mark.parametrize(
    ("error", "judged"),
    [
        (PoolBrokenError(NO_GANG), RunBrokenError(f"the run broke: PoolBrokenError: {NO_GANG}")),
        (LeaseLostError("taken"), RunBrokenError("the run broke: LeaseLostError: taken")),
        (UnusableModelError("model.checkpoint: bad"), UsageError("model.checkpoint: bad")),
        (None, RunBrokenError(f"the run broke: ActorDiedError: {DEAD}")),
    ],
    ids=["no gang", "lease lost", "unusable model", "pool dead"],
)
def test_what_the_pool_raises_is_what_a_run_ends_with(
    ray_cluster: None, error: Exception | None, judged: Exception
) -> None:
    pool = ray.remote(Breaking).remote(error)
    with pytest.raises(RayTaskError) as broke:
        ray.get(ray.remote(ask_as_ray_data).remote(pool))
    ray.kill(pool)
    told = _judge(_find_cause(broke.value))
    assert (type(told), str(told)) == (type(judged), str(judged))
