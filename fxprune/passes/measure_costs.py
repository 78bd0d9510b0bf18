"""What will the compact model cost, as a function of which gates are open?

Parameters: of each one the product of its living indexes along its dimensions. Multiply-accumulates: of each op the
same of the sides of its operands, at the example inputs. Coupled channels so count once, and all that goes with them.
Latency: see `measure_latency`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fxprune.errors import TargetError
from fxprune.methods.targets import Latency, Target
from fxprune.methods.threshold import count_closed
from fxprune.methods.unit_costs import Term, UnitCosts
from fxprune.methods.weight_costs import WeightCosts
from fxprune.model import TracedModel, find_tensor
from fxprune.passes.analyse import Channels
from fxprune.passes.cost_terms import evaluated_products, list_parameter_terms, list_parameters, product_term
from fxprune.passes.exclude import find_excluded

NEAR = 0.01
"""How far a target may be missed."""


def measure_unit_costs(model: TracedModel, channels: Channels, numbers: Tensor, target: Target) -> UnitCosts:
    """Give the cost that the target names as a function of the open units; `numbers` are theirs, -1 for the pinned.

    Raises TargetError for a target that is out of reach, PatternError for an override that matches nothing.
    """
    places = {(name, dim): numbers[units] for name, dim, units in channels.positions}
    terms: list[Term] = []
    total: int | None = None
    if target.cost == "parameters":
        terms = list(list_parameter_terms(model, channels, places))
        total = sum(shape.numel() for shape in list_parameters(model, channels).values())
    elif target.cost == "multiply-accumulates":
        terms = [product_term(channels, numbers, product) for product in evaluated_products(model, channels)]
        total = sum(product.macs for product in evaluated_products(model, channels))
    elif isinstance(target, Latency):
        from fxprune.passes.measure_latency import measure_latency_terms  # loads ONNX and its runtimes

        terms = measure_latency_terms(model, channels, numbers, target)
    made = {name: numbers[channels.units_along(name, rows)] for name, rows in channels.weights.items()}
    own = torch.full((int(numbers.max()) + 1,), math.nan, dtype=torch.float64)
    for name, share in find_own_shares(model, {n for n in made if bool((made[n] >= 0).any())}, target).items():
        own[made[name][made[name] >= 0]] = share
    costs = UnitCosts(int(numbers.max()) + 1, target, list(places.values()), terms, total, own)
    check_widths(costs)
    check_overrides(costs, made)
    if not costs.is_measured:  # else it is what a whole network takes that decides
        check_reach_of_units(costs)
        nearly = (costs.asked - costs.quantum).clamp_min(0)  # the last block may be a part that is more than was asked
        check_overshoot(target, int(costs.cost(costs.size - nearly)), int(costs.total))
    return costs


def measure_weight_costs(
    model: TracedModel, channels: Channels, gates: dict[str, int], target: Target
) -> WeightCosts:  # fmt: skip
    """Give the cost that the target names as a function of the open weights or stripes, `gates` of each parameter.

    A weight costs 1 parameter, and a multiply-accumulate each time it is used. Raises as `measure_unit_costs` does.
    """
    if target.align > 1:
        raise TargetError(f"align={target.align} is for widths: give granularity='channel', or leave it out")
    if target.least > 1:
        raise TargetError(f"least={target.least} is for units: give granularity='channel', or leave it out")
    total = sum(gates.values())
    prices = dict.fromkeys(gates, 1)
    if target.cost == "parameters":
        total = sum(shape.numel() for shape in list_parameters(model, channels).values())
        prices = {name: find_tensor(model, name).numel() // number for name, number in gates.items()}
    elif target.cost == "multiply-accumulates":
        products = evaluated_products(model, channels)
        total = sum(product.macs for product in products)
        prices = {n: sum(p.macs for p in products if p.source == n) // number for n, number in gates.items()}
    costs = WeightCosts(target, prices, total, find_own_shares(model, set(gates), target))
    check_reach(target, costs.count_least(gates), total)
    closed = {name: max(0, count_closed(gates[name], share) - 1) for name, share in costs.own.items()}
    check_overshoot(target, total - costs.sum_costs(closed), total)
    return costs


def find_own_shares(model: TracedModel, weights: set[str], target: Target) -> dict[str, float]:
    """Give the share that an override closes of the layers with these weights, by name, in the order of the overrides.

    Raises PatternError where a pattern matches nothing, TargetError where nothing that it matches can be pruned.
    """
    own: dict[str, float] = {}
    for pattern, value in target.overrides.items():
        matched = find_excluded(model, [pattern], "overrides") & weights
        if not matched:
            raise TargetError(f"overrides={{{pattern!r}: {value}}}: nothing of these layers can be pruned")
        own = {name: share for name, share in own.items() if name not in matched}
        own |= dict.fromkeys(sorted(matched), target.override(value))
    return own


def check_widths(costs: UnitCosts) -> None:
    """Refuse a floor under which no group of channels may lose any."""
    target = costs.target
    if target.overrides or bool(costs.most_closed().any()):
        return
    raise TargetError(
        f"no channel may close: the largest group has {int(costs.size.max())}, and least={target.least} of each group "
        f"stay, in multiples of align={target.align}; lower them in the target, such as "
        f"{type(target).__name__}(0.5, least=0), with which whole layers may close"
    )


def check_overrides(costs: UnitCosts, made: dict[str, Tensor]) -> None:
    """Refuse overrides that ask for less than the floor; `made` are the units that each weight's rows make."""
    for group in (costs.asked - costs.most_closed() >= costs.quantum).nonzero().flatten().tolist():
        name = next(name for name, index in made.items() if bool((costs.group[index[index >= 0]] == group).any()))
        size, asked = int(costs.size[group]), int(costs.asked[group])
        raise TargetError(
            f"{name}: overrides leave {size - asked} of {size} units open, but at least {costs.target.least} stay, "
            f"in steps of {int(costs.quantum[group])}; ask for less there, or lower least or align"
        )


def check_overshoot(target: Target, left: int, total: int) -> None:
    """Refuse overrides that leave less of the `total` cost than the target; `left` is what they leave, or more."""
    if target.overrides and total - left > count_closed(total, min(1.0, target.share * (1 + NEAR))):
        raise TargetError(
            f"the overrides alone leave {left / total:.2%} of the {target.cost}, fewer than the target: {target}; let "
            "them close less, or ask for what they come to"
        )


def check_reach_of_units(costs: UnitCosts) -> None:
    """Refuse a target that cannot be met by closing units."""
    left = costs.size - costs.most_closed()
    check_reach(costs.target, int(costs.cost(left)), int(costs.total), costs.list_shares(left))


def check_reach(target: Target, least: int, total: int, shares: Mapping[str, float] | None = None) -> None:
    """Refuse a target that cannot be met, where at the least so much of the `total` cost remains.

    `shares` say which layers have it, the largest first, where it is channels that close.
    """
    if least <= total - count_closed(total, target.share):
        return
    counts = [] if isinstance(target, Latency) else [f"{least:,} of {total:,}"]  # a time is known as a share alone
    if shares is not None:
        steps = f", in multiples of {target.align}" if target.align > 1 else ""
        counts += [f"at least {target.least} of each group of channels stays{steps}"]
    largest = [f"{name} ({share:.0%})" for name, share in (shares or {}).items() if name][:3]
    where = f", most of it in {', '.join(largest)}" if largest else ""
    raise TargetError(
        f"{target} cannot be reached: with everything closed that may close {least / total:.2%} of the {target.cost} "
        f"remain ({'; '.join(counts)}){where}; ask for less, or leave fewer layers out by exclude, align, least or "
        "overrides"
    )
