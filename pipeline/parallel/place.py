"""`Place`: where one rank stands in its gang's mesh, and with whom it exchanges what."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

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
        half, rank = mesh.get_local_rank("guidance"), mesh.get_local_rank("tensor")
        tensor = TensorGroup(rank, layout.tensor, mesh.get_group("tensor"))
        guidance = GuidanceGroup(half, mesh.get_group("guidance"))
        return cls(
            tensor if layout.tensor > 1 else None,
            ContextGroup.find(mesh, layout.context) if layout.context > 1 else None,
            guidance if layout.guidance > 1 else None,
        )
