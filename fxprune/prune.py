"""How is a model pruned in one go: between two trainings, or without any?"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.api import convert, prepare
from fxprune.check_unchanged import check_unchanged
from fxprune.errors import FxpruneError, TargetError
from fxprune.is_number import is_whole
from fxprune.meet_latency import meet_latency
from fxprune.methods.base import Method
from fxprune.methods.gmp import GMP
from fxprune.methods.targets import Latency
from fxprune.model import PreparedModel, in_eval_mode
from fxprune.scheduler import find_masked


def prune(model: nn.Module, example_inputs: Any = None, **options: Any) -> PreparedModel:
    """Close in one go what the target says, and return the prepared model.

    A prepared model is pruned in place: between two trainings, for methods that prune in one go (RNI, Network
    Slimming, UCS), once for each cycle (LRR), or at any time for the others. Any other model stays as it
    was, and is prepared first, as by `prepare(model, example_inputs, **options)`; the method is `GMP()` unless given.

    Raises what `prepare` raises, and TargetError where the method takes no target.
    """
    if not isinstance(model, PreparedModel):
        options.setdefault("method", GMP())
        if getattr(type(options["method"]), "adapt", Method.adapt) is not Method.adapt:
            raise FxpruneError(explain_untrained(options["method"]))
        prepared = prepare(model, example_inputs, **options)
    elif options or example_inputs is not None:
        raise FxpruneError("a prepared model has its inputs, method and target already; give fxprune.prune that alone")
    else:
        prepared = model
        check_unchanged(prepared)
    masks = prepared.fxprune
    if masks.target is None:
        raise TargetError(f"{type(masks.method).__name__} has no target, so it cannot prune in one go")
    variables = list(masks.variables.values())
    if variables and all(float((each.max() - each.min()).detach()) < UNTRAINED for each in variables):
        raise FxpruneError(explain_untrained(masks.method))
    share = masks.target.share * masks.method.share_of(int(masks.calls) + 1, masks.target.share)
    if isinstance(masks.target, Latency) and prepared is model:  # by now its layers have other scores
        prepared.latency = meet_latency(prepared, masks.target, share, partial(convert, check=False))
    masks.refresh(find_masked(prepared, masks), share)
    masks.calls += 1
    return prepared


UNTRAINED = 1e-4
"""How far what a method has learnt in training lies apart, at the least."""


def explain_untrained(method: Any) -> str:
    """Say that a method has nothing to go by yet."""
    return (
        f"{type(method).__name__} prunes by what it learns in training, and nothing was trained yet: prepare the "
        "model, train it with a Scheduler, and then call fxprune.prune; at once prunes method=fxprune.GMP()"
    )


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any], count: int | None = None) -> None:
    """Measure the statistics of all batch norms anew, in place, over at most `count` batches of inputs.

    Each batch is a tensor, a tuple or list whose first element is the input, or a dict of keyword inputs. Statistics
    are plain averages over the batches. Everything but the batch norms runs in eval mode, and every mode is put back.

    Raises FxpruneError where there are no batches; then, and where one does not run, the statistics stay as they were.
    """
    if not isinstance(model, nn.Module):
        raise FxpruneError(f"recalibrate takes a torch.nn.Module and batches, not a {type(model).__name__} first")
    if isinstance(batches, (Tensor, dict)) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise FxpruneError(
            f"recalibrate goes through batches, which a {type(batches).__name__} is not: give a loader, or [batch]"
        )
    if count is not None and not is_whole(count, 1):
        raise FxpruneError(f"count={count!r}: give the number of batches, 1 or more, or None for all that there are")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    momenta = [norm.momentum for norm in norms]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seen = 0
    try:
        with in_eval_mode(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for batch in batches:
                if seen == count:
                    break
                run(model, batch, device)
                seen += 1
        if norms and not seen:
            raise FxpruneError("there are no batches to measure statistics on, which stay as they were: give a loader")
    except BaseException:
        for buffer, before in statistics:
            buffer.copy_(before)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def run(model: nn.Module, batch: Any, device: torch.device) -> None:
    if isinstance(batch, dict):
        model(**{name: move(value, device) for name, value in batch.items()})
    else:
        model(move(batch[0] if isinstance(batch, (tuple, list)) else batch, device))


def move(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
