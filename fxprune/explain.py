"""What is said where a call fails inside a graph, and where a state dict does not fit: which line, which names."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from fxprune.compile_graph import GRAPH_FILE


def explain_failure(error: Exception, graph: fx.Graph, source: str) -> str:
    """Say what the code of a graph was doing when it failed: the node and its line of the user's code.

    Where it was not even called, say what it takes.
    """
    numbers = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == GRAPH_FILE]
    if not numbers or numbers[-1] is None:
        names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
        return f"this model was prepared to be called with ({', '.join(names)}), as its example_inputs were"
    name = source.splitlines()[numbers[-1] - 1].strip().partition(" = ")[0]
    where = {node.name: node.meta.get("where") for node in graph.nodes}.get(name)
    return f"raised by {name}, in the model's code at {where or 'a line that is not known'}"


def explain_misfit(own: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    """Say how a state dict differs from the tensors that a model holds, in names and sizes; nothing if in neither."""
    own = {name: tensor for name, tensor in own.items() if not name.startswith("fxprune.")}
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own and not name.startswith("fxprune.")]
    sizes = [
        f"{name} has the sizes {tuple(state[name].shape)}, and {tuple(own[name].shape)} here"
        for name in own
        if isinstance(state.get(name), Tensor) and state[name].shape != own[name].shape
    ]
    for wrapper, source in (("module.", "DistributedDataParallel"), ("_orig_mod.", "torch.compile")):
        if unknown and all(name.startswith(wrapper) for name in unknown):
            return f"the names begin with `{wrapper}`, which {source} adds: take that of the model inside"
    found = [f"it lacks {len(missing)} of {len(own)} tensors ({shorten(missing)})"] if missing else []
    found += [f"it has {len(unknown)} that the model lacks ({shorten(unknown)})"] if unknown else []
    found += [f"{len(sizes)} have other sizes ({shorten(sizes)})"] if sizes else []
    return ", ".join(found)


def shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
