"""`ParallelLayout`: how a gang's ranks deal out one clip's work. Arithmetic alone, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParallelLayout:
    """Degrees of parallelism; a gang has their product of ranks."""

    tensor: int = 1
    """Ranks that share the transformer's layers."""
    context: int = 1
    """Ranks that share a clip's tokens."""
    guidance: int = 1
    """2: the conditional and the unconditional prediction each have ranks of their own."""

    @property
    def ranks(self) -> int:
        """How many ranks the layout takes."""
        return self.tensor * self.context * self.guidance

    def __str__(self) -> str:
        """Return the layout as a commit names it: `1`, `tensor=2`, `tensor=2 guidance=2`."""
        degrees = {"tensor": self.tensor, "context": self.context, "guidance": self.guidance}
        return " ".join(f"{name}={n}" for name, n in degrees.items() if n > 1) or "1"
