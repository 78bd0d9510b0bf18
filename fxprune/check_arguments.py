"""What is refused before any work: arguments of the wrong kind, models that are wrapped or hold no values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fxprune.conversion_report import Report
from fxprune.errors import FxpruneError, TargetError
from fxprune.masks import GRANULARITIES, Masks
from fxprune.methods.base import Method
from fxprune.methods.targets import Latency, Target
from fxprune.model import RESERVED, PreparedModel, TracedModel, named_tensors
from fxprune.sharding import is_sharded


def check_arguments(
    model: nn.Module, method: Method, target: Target | None, granularity: str, heads: str, shapes: str
) -> None:
    """Refuse arguments of the wrong kind before any work."""
    check_surroundings(model)
    if isinstance(getattr(model, "fxprune", None), Masks):
        raise FxpruneError("this model is prepared already; convert it, or prepare the original again")
    parts = [*model.named_children(), *model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
    own = {name for name, _ in parts}
    for attribute in sorted(own & RESERVED) or (["fxprune"] if hasattr(model, "fxprune") else []):
        raise FxpruneError(
            f"the model has a part named `{attribute}`, under which a prepared model keeps its own state; rename it"
        )
    if not isinstance(method, Method):
        raise FxpruneError(f"method={method!r}: give an instance such as fxprune.Feather() or fxprune.ST3(sigma=True)")
    if not callable(method.schedule):
        raise FxpruneError(
            f"schedule={method.schedule!r}: give fxprune.Cubic(begin, end), or a function of (step, total_steps) that "
            "gives the share of the target"
        )
    if not isinstance(target, Target | None):
        raise TargetError(
            f"target={target!r}: give fxprune.Sparsity(0.5), the share that is masked at the end, "
            "or Params, Macs or Latency"
        )
    name = type(method).__name__
    if target is not None and not method.takes_target:
        other = f", or give method={method.targeted}" if method.targeted else ""
        raise TargetError(
            f"{name} takes no target: how much it closes follows from its own settings; leave target out{other}"
        )
    if granularity not in GRANULARITIES:
        raise TargetError(f"granularity={granularity!r}: give 'weight', 'stripe' or 'channel'")
    if granularity not in method.granularities:
        known = " or ".join(repr(each) for each in method.granularities)
        default = "; 'channel' is what prepare takes unless told otherwise" if granularity == "channel" else ""
        raise TargetError(f"{name} has no granularity={granularity!r}: give {known}{default}")
    if isinstance(target, Latency):
        if granularity != "channel":
            raise TargetError(
                f"target={target} solves for widths: give granularity='channel', or for {granularity}s another target, "
                "such as Macs(remaining=0.5), and measure what it gives"
            )
        from fxprune.export.runtimes.registry import find_runtime

        str(find_runtime(target.runtime).name)  # raises where it cannot run
    if shapes not in ("free", "rectangles"):
        raise TargetError(f"shapes={shapes!r}: give 'free' or 'rectangles'")
    if shapes == "rectangles" and granularity != "stripe":
        raise TargetError(f"shapes='rectangles' goes with granularity='stripe', not with {granularity!r}")
    if heads not in ("whole", "inner"):
        raise TargetError(f"heads={heads!r}: give 'whole' or 'inner'")


def check_into(into: Any) -> None:
    """Refuse an original that is none, before any work."""
    if isinstance(into, TracedModel):
        raise FxpruneError("into=... takes the model as it was before prepare, not one that fxprune returned")
    if into is not None and not isinstance(into, nn.Module):
        raise FxpruneError(f"into=... takes a torch.nn.Module, not {type(into).__name__}")
    if not isinstance(getattr(into, "report", None), Report | None):
        raise FxpruneError("the model has an attribute `report`, where convert puts its own; rename it")


def check_surroundings(model: Any) -> None:
    """Refuse what is no model, wrapped and sharded models, and inference mode."""
    if not isinstance(model, nn.Module):
        shown = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise FxpruneError(f"fxprune takes a torch.nn.Module, not {shown}")
    if hasattr(model, "_orig_mod"):
        raise FxpruneError("the model is compiled: pass the one that torch.compile was given, and compile the result")
    for name, module in model.named_modules():
        if isinstance(module, PreparedModel) and module is not model:
            raise FxpruneError(f"the prepared model lies inside {type(model).__name__}, as `{name}`; pass model.{name}")
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise FxpruneError(
            f"the parameters of {type(model).__name__} are sharded: load its whole state dict, from torch.distributed."
            "checkpoint.state_dict.get_model_state_dict(..., options=StateDictOptions(full_state_dict=True)), into a "
            "model prepared in the same way, and give that"
        )
    refuse_valueless(model)
    if torch.is_inference_mode_enabled():
        raise FxpruneError("fxprune cannot work under torch.inference_mode(): leave that block, or use torch.no_grad()")


def refuse_valueless(model: nn.Module) -> None:
    """Refuse parameters and buffers that have no shape yet, or no values."""
    for name, tensor in named_tensors(model):
        if is_lazy(tensor):
            raise FxpruneError(
                f"{name} gets its shape in the first call of {type(model).__name__}: call the model once, with what it "
                "is to take, before it goes to fxprune"
            )
        if tensor.is_meta:
            raise FxpruneError(
                f"{name} lies on the meta device and holds no values: load the weights of {type(model).__name__}, or "
                "give it some by model.to_empty(device=...) and its own initialisation"
            )
