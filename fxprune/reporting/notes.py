"""What does a report say in sentences?"""

from __future__ import annotations

from fxprune.reporting.comparison import Comparison


def title_of(comparison: Comparison) -> str:
    """Name the model."""
    return f"{comparison.model}, pruned"


def describe_pruning(comparison: Comparison) -> str:
    """Name method and target as they were called; nothing where no prepared model was converted."""
    conversion = comparison.conversion
    return ", ".join(filter(None, (conversion.method, conversion.target))) if conversion is not None else ""


def list_notes(comparison: Comparison) -> list[str]:
    """Say what conversion did, what was not measured, and which checks failed."""
    notes = str(comparison.conversion).splitlines() if comparison.conversion is not None else []
    if notes:
        notes[-1] = f"conversion: {notes[-1]}"
    if comparison.benchmark is not None:
        notes += [str(each) for each in comparison.benchmark.not_measured]
    return [*notes, *list_failures(comparison)]


def list_failures(comparison: Comparison) -> list[str]:
    """Say which checks failed."""
    return [
        f"{network.name}: the file differs from the model by more than {network.verification.tolerance:g}"
        for network in comparison.networks
        if network.verification is not None and not network.verification.passed
    ]


def list_surroundings(comparison: Comparison) -> list[str]:
    """Say on what, beside what and with which versions it was made."""
    runtimes = comparison.benchmark.runtimes if comparison.benchmark is not None else {}
    return [*str(comparison.environment).splitlines(), *(f"{name}: {what}" for name, what in runtimes.items())]
