"""Profiles of a snapshot, drawn at random."""

import numpy as np
import numpy.typing as npt

from kserve._core import Snapshot

__all__ = ["sample"]

def sample(snapshot: Snapshot, n: int, seed: int) -> npt.NDArray[np.uint64]:
    """At most ``n`` profile ids, ascending, each once; the same for the same seed. Fewer when they were drawn twice."""
