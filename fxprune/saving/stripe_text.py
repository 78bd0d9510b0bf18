"""How the lowering of stripes becomes JSON, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

from fxprune.stripes.lowering import Lowering, Part
from fxprune.stripes.rectangles import Rectangle
from fxprune.stripes.step import LoweredLayer, Race


def write_layer(layer: LoweredLayer) -> dict[str, Any]:
    """Write one layer: of each part its filters, and the rows and columns of its rectangles."""
    plain = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    parts = [
        {"filters": part.filters, "rectangles": [[list(r.rows), list(r.columns)] for r in part.rectangles]}
        for part in layer.lowering.parts
    ]
    return {**plain, "lowering": parts}


def read_layer(layer: dict[str, Any]) -> LoweredLayer:
    """Read what `write_layer` wrote; raises ValueError where the parts are not those of its filters and kernel."""
    height, width = layer["kernel"]
    filters, measured = int(layer["filters"]), layer["measured"]
    parts = tuple(
        Part(
            tuple(part["filters"]),
            tuple(
                Rectangle(read_range(rows, height), read_range(columns, width)) for rows, columns in part["rectangles"]
            ),
        )
        for part in layer["lowering"]
    )
    lowering = Lowering(parts)
    if parts and sorted(lowering.order) != list(range(filters)):
        raise ValueError(f"the parts do not have each of {filters} filters once")
    return LoweredLayer(
        filters,
        (int(height), int(width)),
        tuple(tuple(map(int, row)) for row in layer["living"]),
        lowering,
        float(layer["predicted"]),
        None if measured is None else (float(measured[0]), float(measured[1])),
    )


def read_range(numbers: list[int], size: int) -> range:
    """Read an arithmetic progression of numbers below a size."""
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    found = range(numbers[0], numbers[-1] + 1, step)
    if list(found) != numbers or not 0 <= numbers[0] <= numbers[-1] < size:
        raise ValueError(f"{numbers} are no positions of a kernel")
    return found


def read_race(race: dict[str, Any] | None) -> Race | None:
    """Read the race of the whole network."""
    return None if race is None else Race(**race)
