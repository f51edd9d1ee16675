"""Bounds of a setting, written beside its type: `momentum: Fraction = 0.995`."""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The finite numbers from `ge` to `le`, above `gt` and below `lt`."""

    ge: float = -math.inf
    gt: float = -math.inf
    le: float = math.inf
    lt: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.ge <= value <= self.le and self.gt < value < self.lt

    def __str__(self) -> str:
        limits = {
            "at least": self.ge,
            "more than": self.gt,
            "at most": self.le,
            "below": self.lt,
        }
        finite = [f"{word} {n}" for word, n in limits.items() if math.isfinite(n)]
        return " and ".join(finite)


PositiveInt = Annotated[int, Range(gt=0)]
NonNegativeInt = Annotated[int, Range(ge=0)]
PositiveFloat = Annotated[float, Range(gt=0)]
NonNegativeFloat = Annotated[float, Range(ge=0)]
Fraction = Annotated[float, Range(ge=0, le=1)]
FractionBelowOne = Annotated[float, Range(ge=0, lt=1)]
