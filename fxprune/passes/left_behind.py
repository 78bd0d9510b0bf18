"""What code leaves behind when it is traced: buffers that it assigns, and the numbers that Python and numpy draw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from fxprune.errors import TraceError
from fxprune.passes.proxies import ValueProxy


def store_buffers(graph: fx.Graph, root: nn.Module, before: dict[str, Tensor]) -> None:
    """Let a graph write to the buffers that its code assigns (`self.mean = 0.9 * self.mean + ...`), at its end.

    What reads them in the graph gets a copy of what they were. Raises TraceError where one gets another shape.
    """
    output = next(reversed(graph.nodes))
    for path, module in root.named_modules():
        for leaf, value in module._buffers.items():
            name = f"{path}.{leaf}" if path else leaf
            if type(value) is not ValueProxy or name not in before:
                continue
            if value._value.shape != before[name].shape:
                raise TraceError(
                    f"{value.node.meta.get('where', name)}: the code gives the buffer {name} another shape, "
                    f"{tuple(value._value.shape)} after {tuple(before[name].shape)}; let it keep one, and write to it"
                )
            for node in [node for node in graph.nodes if node.op == "get_attr" and node.target == name]:
                with graph.inserting_after(node):
                    copied = graph.call_method("clone", (node,))
                copied.meta.update(node.meta)
                node.replace_all_uses_with(copied, lambda user, copied=copied: user is not copied)
            with graph.inserting_before(output):
                stored = graph.call_method("copy_", (graph.get_attr(name), graph.call_method("detach", (value.node,))))
            for node in (stored, *stored.all_input_nodes):
                node.meta["where"] = value.node.meta.get("where", f"the buffer {name}")


@contextmanager
def kept_chance() -> Iterator[None]:
    """Put the random numbers of Python and numpy back; raises TraceError where the code draws some."""
    before = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        after = random.getstate(), np.random.get_state()
        random.setstate(before[0])
        np.random.set_state(before[1])
    if before[0] != after[0] or not all(map(is_equal, before[1], after[1])):
        raise TraceError(
            "its code draws random numbers from Python or numpy, which a graph would hold for good; draw them with "
            "torch, or keep it out of the model that is prepared"
        )


def is_equal(a: Any, b: Any) -> bool:
    """Compare two parts of numpy's random state."""
    return bool(np.array_equal(a, b))
