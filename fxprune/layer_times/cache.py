"""Where are times kept, so that no layer is timed twice on one machine?

In one JSON file for each runtime (with its version), processor and number of threads, in the user's cache folder. A
file that is damaged or of another kind counts as empty and is written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from fxprune.export.environment import name_processor

FORMAT = 1


@dataclass(frozen=True)
class Machine:
    """What times depend on beside the layer."""

    runtime: str  # with its version
    threads: int
    processor: str = field(default_factory=name_processor)


def find_file(machine: Machine) -> Path:
    """The file with the times of a machine."""
    digest = hashlib.sha256(repr((FORMAT, machine)).encode()).hexdigest()[:16]
    return platformdirs.user_cache_path("fxprune", appauthor=False) / "layer_times" / f"{digest}.json"


def read_times(machine: Machine) -> dict[str, float]:
    """Read the milliseconds of all layers that were timed on a machine, by their texts."""
    try:
        times = json.loads(find_file(machine).read_text(encoding="utf-8"))["times"]
        return {str(text): float(milliseconds) for text, milliseconds in times.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def add_times(machine: Machine, times: dict[str, float]) -> None:
    """Add times to those of a machine; a folder that cannot be written to keeps none."""
    path = find_file(machine)
    text = json.dumps({"machine": vars(machine), "times": read_times(machine) | times}, indent=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as beside:
            beside.write(text)
        os.replace(beside.name, path)
    except OSError:
        return
