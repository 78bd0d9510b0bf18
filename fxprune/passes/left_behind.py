"""What code leaves behind when it is traced: buffers that it assigns, proxies in caches, and dice that were thrown."""

from __future__ import annotations

import functools
import gc
import random
import weakref
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
                if not value._data:
                    continue  # a table that follows from sizes, and is made again in each call
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


def forget_proxies(proxies: list[weakref.ref[ValueProxy]]) -> None:
    """Take what stood for values out of the caches of the user's process, where code that was traced has put it."""
    alive = [proxy for reference in proxies if (proxy := reference()) is not None and proxy.node.op != "get_attr"]
    for holder in gc.get_referrers(*alive) if alive else ():
        if isinstance(holder, functools._lru_cache_wrapper):
            holder.cache_clear()
        elif isinstance(holder, dict):
            owner = next((each for each in gc.get_referrers(holder) if isinstance(each, type)), None)
            put_back(holder, owner)
        elif isinstance(holder, list) and holder is not alive:
            holder[:] = [value._value if type(value) is ValueProxy else value for value in holder]
        elif isinstance(getattr(holder, "__dict__", None), dict) and not isinstance(holder, type):
            put_back(vars(holder), None)


def put_back(holder: dict[str, Any], owner: type | None) -> None:
    """Put values into the places of proxies in a dictionary, which may be that of a class; nothing, without a value."""
    for name, proxy in list(holder.items()):
        if type(proxy) is not ValueProxy:
            continue
        if type(proxy._value) is not Tensor:
            holder.pop(name) if owner is None else delattr(owner, name)
        elif owner is None:
            holder[name] = proxy._value
        else:
            setattr(owner, name, proxy._value)


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
    if before[0] != after[0] or not all(map(np.array_equal, before[1], after[1])):
        raise TraceError(
            "its code draws random numbers from Python or numpy, which a graph would hold for good; draw them with "
            "torch, or keep it out of the model that is prepared"
        )
