"""How many tokens each rank of a clip has."""

# pyright: reportPrivateUsage=false, reportMissingTypeStubs=false

from __future__ import annotations

from diffusers.models._modeling_parallel import ContextParallelConfig, gather_size_by_comm


def find_lengths(config: ContextParallelConfig, own: int) -> list[int]:
    """Return every rank's number of tokens, by this one's `own`.

    Ranks ask each other only where their shares differ.
    """
    if config.ulysses_anything:
        return gather_size_by_comm(own, config._ulysses_mesh.get_group())
    return [own] * (config.ulysses_degree or 1)
