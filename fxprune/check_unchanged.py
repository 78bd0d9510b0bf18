"""Is a prepared model still the one whose graphs were traced? They read parameters by name, and no other code runs."""

from __future__ import annotations

from torch import nn

from fxprune.errors import FxpruneError
from fxprune.model import PreparedModel, find_parts


def check_unchanged(prepared: PreparedModel) -> None:
    """Refuse a prepared model some layer of which was added, removed or replaced by one of another kind or settings.

    New weights of the same layer are no change, whether they were loaded, converted to another type, or are a new
    parameter. Raises FxpruneError.
    """
    now = find_parts(prepared)
    for name, module in now.items():
        known = prepared.fxprune.parts.get(name)
        if known is None:
            raise FxpruneError(f"the layer {name} was added after fxprune.prepare, {_CONSEQUENCE}")
        if known is not module and describe(known) != describe(module):
            raise FxpruneError(
                f"the layer {name} was {describe(known)} and became {describe(module)} after fxprune.prepare, "
                f"{_CONSEQUENCE}"
            )
    for name in prepared.fxprune.parts:
        if name not in now:
            raise FxpruneError(f"the layer {name} was removed after fxprune.prepare, {_CONSEQUENCE}")


_CONSEQUENCE = "but what runs is the graph that was traced then; change the original model and prepare it again"


def describe(module: nn.Module) -> str:
    """Name a module's kind and settings, without what lies inside of it."""
    return f"{module._get_name()}({module.extra_repr()})"
