"""What did a conversion remove, and what could it not?"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """What a conversion removed, what it could not, and how exact it is."""

    parameters_before: int
    parameters_after: int
    units_removed: int
    kept: dict[str, int]  # closed units that stay, by reason
    error: float | None  # largest output difference, relative to the outputs' range; None if not checked
    method: str | None = None  # that of the prepared model, as its call is written
    target: str | None = None
    counted: str | None = None  # of what the masks took a share: weights, stripes, units, or what the target names
    masked: float | None = None  # that share
    asked: float | None = None  # the share that the target asks for

    def __str__(self) -> str:
        lines = [f"{self.parameters_before:,} parameters became {self.parameters_after:,}"]
        if self.counted is not None and self.masked is not None:
            lines += [f"masks took {self.masked:.1%} of the {self.counted}"]
            if self.asked is not None:
                lines[-1] += f"; the target is {self.asked:.1%}"
        lines += [f"{self.units_removed:,} units went"]
        if not self.units_removed and not self.kept:
            lines[-1] += (
                ": none is closed as a whole (fxprune.Scheduler closes more as training goes on, fxprune.prune at once)"
            )
        lines += [f"{count:,} closed units stay: {reason}" for reason, count in self.kept.items()]
        checked = (
            f"largest difference {self.error:.1e} of the outputs' range" if self.error is not None else "not checked"
        )
        return "\n".join([*lines, checked])
