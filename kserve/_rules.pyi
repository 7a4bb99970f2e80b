"""A rule compiled against one snapshot; only ``_core`` makes one."""

from typing import final

import numpy as np
import numpy.typing as npt

from kserve.rule import Rule

__all__ = ["CRITERIA", "CompiledRule", "hundredths_at_least"]

CRITERIA: tuple[str, ...]

@final
class CompiledRule:
    def __init__(
        self,
        rule: Rule,
        topic_bits: npt.NDArray[np.uint32] | None,
        allowed_locations: npt.NDArray[np.uint8] | None,
    ) -> None: ...

def hundredths_at_least(points: float | None) -> int: ...
