"""What did a pruned network take beside the dense one?"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LatencyTrial:
    """A network that was really pruned, exported and timed beside the dense one; shares are of the dense latency."""

    asked: float
    predicted: float  # before it was timed
    measured: float
    low: float  # the interval of `measured`, 95%
    high: float
    dense: float  # milliseconds
    compact: float

    @property
    def miss(self) -> float:
        """How far it came out from what was asked for, relative to that."""
        return abs(self.measured / self.asked - 1)

    def __str__(self) -> str:
        return (
            f"{self.measured:.1%} of the dense latency remain ({self.low:.1%} to {self.high:.1%}): {self.compact:.3f} "
            f"of {self.dense:.3f} ms; {self.asked:.1%} were asked for, {self.predicted:.1%} predicted"
        )
