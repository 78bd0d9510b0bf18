"""Is a model still the one that its graphs say it is? They read parameters by name, and no other code runs.

A converted model calls the layers that it holds, whatever its owner has made of them since; only what works on its
graphs has to ask.
"""

from __future__ import annotations

from fxprune.compile_graph import describe, takes_own
from fxprune.errors import FxpruneError
from fxprune.find_module import find_module
from fxprune.layer_functions import find_layer
from fxprune.model import PreparedModel, TracedModel, find_parts


def check_unchanged(prepared: PreparedModel) -> None:
    """Refuse a prepared model some layer of which was added, removed, or is of another kind or has other settings.

    Settings of modules that the graph calls are followed: only those of layers stand in the graph.

    New weights of the same layer are no change, whether they were loaded, converted to another type, or are a new
    parameter. Raises FxpruneError.
    """
    now = find_parts(prepared)
    for name, module in now.items():
        known = prepared.fxprune.parts.get(name)
        if known is None:
            raise FxpruneError(f"the layer {name} was added after fxprune.prepare, {_CONSEQUENCE}")
        was, is_now = prepared.fxprune.described[name], describe(module)
        if was != is_now and (known is not module or find_layer(module) is not None):
            raise FxpruneError(f"the layer {name} was {was} and became {is_now} after fxprune.prepare, {_CONSEQUENCE}")
    for name in prepared.fxprune.parts:
        if name not in now:
            raise FxpruneError(f"the layer {name} was removed after fxprune.prepare, {_CONSEQUENCE}")


_CONSEQUENCE = "but what runs is the graph that was traced then; change the original model and prepare it again"


def check_layers(compact: TracedModel, call: str) -> None:
    """Refuse a converted model some layer of which is no longer what the graph says; `call` is what goes by the graph.

    Raises FxpruneError.
    """
    for run in compact.runs:
        for training, code in run.codes.items():
            nodes = (run.region.train if training else run.region.eval).nodes
            layers = [(node, code.layers[node.name]) for node in nodes if node.name in code.layers]
            changed = [path for node, (path, is_own) in layers if is_own and not takes_own(node, path, compact)]
            changed += [path for path, was in code.modules.items() if describe(find_module(compact, path)) != was]
            if changed:
                raise FxpruneError(
                    f"the layer {changed[0]} is not the one that fxprune.convert made any more; it became "
                    f"{describe(find_module(compact, changed[0]))}, and {call} takes what conversion made: call it "
                    "before such a change, or undo the change"
                )
