"""Does a model's code write to its own parameters, as embeddings with a largest norm do? It runs on copies then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.find_module import find_module
from fxprune.model import TracedModel
from fxprune.passes.analyse import find_written

EMBEDDINGS = (F.embedding, F.embedding_bag)


@contextmanager
def kept_weights(copied: nn.Module, model: nn.Module) -> Iterator[None]:
    """Give a copy of a model the parameters of that again, where code that runs writes to some."""
    versions = {name: parameter._version for name, parameter in copied.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in copied.named_parameters():
            if parameter._version != versions.get(name, parameter._version):
                parameter.data.copy_(model.get_parameter(name).data)


def writes_weights(model: TracedModel) -> bool:
    """Whether a graph of a model writes to a parameter."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return any(writes(node, model, parameters) for graph in model.graphs for node in graph.nodes)


def writes(node: fx.Node, model: TracedModel, parameters: set[str]) -> bool:
    """Whether a node writes to one of these parameters, or to a view of it."""
    if node.op == "call_module":
        return getattr(find_module(model, str(node.target)), "max_norm", None) is not None
    if node.target in EMBEDDINGS:
        return (node.args[3] if len(node.args) > 3 else node.kwargs.get("max_norm")) is not None
    written = find_written(node)
    while written is not None and written.op != "get_attr":
        first = written.args[0] if written.args and may_view(written) else None
        written = first if isinstance(first, fx.Node) else None
    return written is not None and str(written.target) in parameters


def may_view(node: fx.Node) -> bool:
    """Whether what a node gives may share its first argument's memory: as schemas say, and where there are none."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if packet is None:
        return True
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads() if not overload.endswith("out")]
    return any(result.alias_info is not None for schema in schemas for result in schema.returns)
