"""`Place`: where one rank stands in its gang's mesh, and with whom it exchanges what."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from pipeline.parallel.context import ContextGroup
from pipeline.parallel.guidance import GuidanceGroup
from pipeline.parallel.layout import ParallelLayout
from pipeline.parallel.tensor import TensorGroup


@dataclass(frozen=True)
class Place:
    """A rank's groups along the axes of the mesh; None where an axis has one rank."""

    tensor: TensorGroup | None = None
    context: ContextGroup | None = None
    guidance: GuidanceGroup | None = None

    @classmethod
    def find(cls, layout: ParallelLayout, device: str) -> Self:
        """Return this process's place among all processes, which every one of them must call.

        The axes are guidance, context, tensor: ranks that share layers are neighbours. Context is
        two axes, as diffusers wants it; of its two ways to exchange, only Ulysses is used.
        """
        if layout.ranks != dist.get_world_size():
            raise ValueError(f"layout {layout} has {layout.ranks} ranks, not all processes")
        sizes = (layout.guidance, 1, layout.context, layout.tensor)
        names = ("guidance", "ring", "ulysses", "tensor")
        mesh = init_device_mesh(device, sizes, mesh_dim_names=names)
        # They come with torch's own timeouts: of 10 minutes with NCCL, of 30 with gloo.
        world = dist.distributed_c10d._get_default_group()
        timeout = world._get_backend(torch.device(device)).options._timeout
        for name in names:
            dist.distributed_c10d._set_pg_timeout(timeout, mesh.get_group(name))
        half, rank = mesh.get_local_rank("guidance"), mesh.get_local_rank("tensor")
        tensor = TensorGroup(rank, layout.tensor, mesh.get_group("tensor"))
        guidance = GuidanceGroup(half, mesh.get_group("guidance"))
        return cls(
            tensor if layout.tensor > 1 else None,
            ContextGroup.find(mesh, layout.context) if layout.context > 1 else None,
            guidance if layout.guidance > 1 else None,
        )

    def check(self, device: str) -> None:
        """Count the ranks of each group, on `device`; every rank of the gang must call it.

        The first time this makes the connections that a clip will use. With more than one axis no
        group has all processes, but whoever is lost is missed by its own.

        Raises:
            RuntimeError: a group is broken (torch's errors of connections are such), or a rank
                isn't there within the groups' timeout.
        """
        for axis in (self.tensor, self.context, self.guidance):
            if axis is None:
                continue
            count = torch.ones(1, device=device)
            dist.all_reduce(count, group=axis.group)
            expected = dist.get_world_size(axis.group)
            if count.item() != expected:
                raise RuntimeError(
                    f"{type(axis).__name__}: the sum of ones over {expected} ranks gave "
                    f"{count.item():g}, on {device}"
                )
