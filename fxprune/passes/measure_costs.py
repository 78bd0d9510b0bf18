"""What will the compact model cost, as a function of which gates are open?

Parameters: of each one the product of its living indexes along its dimensions. Multiply-accumulates: of each op the
same of the sides of its operands, at the example inputs. Coupled channels so count once, and all that goes with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fxprune.errors import TargetError
from fxprune.methods.targets import Target
from fxprune.methods.threshold import count_closed
from fxprune.methods.unit_costs import Term, UnitCosts
from fxprune.methods.weight_costs import WeightCosts
from fxprune.model import TracedModel, find_tensor, named_tensors
from fxprune.passes.analyse import Channels, is_traced
from fxprune.passes.exclude import find_excluded
from fxprune.shadow.ids import Product, Side
from fxprune.shadow.tensor import compress, varying


def measure_unit_costs(model: TracedModel, channels: Channels, numbers: Tensor, target: Target) -> UnitCosts:
    """Give the cost that the target names as a function of the open units; `numbers` are theirs, -1 for the pinned.

    Raises TargetError for a target that is out of reach, PatternError for an override that matches nothing.
    """
    places = {(name, dim): numbers[units] for name, dim, units in channels.positions()}
    terms: list[Term] = []
    if target.cost == "parameters":
        terms = list(list_parameter_terms(model, channels, places))
        total = sum(shape.numel() for shape in list_parameters(model, channels).values())
    elif target.cost == "multiply-accumulates":
        terms = [product_term(channels, numbers, product) for product in evaluated_products(model, channels)]
        total = sum(product.macs for product in evaluated_products(model, channels))
    else:
        total = int(numbers.max()) + 1
    made = {name: numbers[channels.units_along(name, rows)] for name, rows in channels.weights.items()}
    own = torch.full((int(numbers.max()) + 1,), math.nan, dtype=torch.float64)
    for name, share in find_own_shares(model, {n for n in made if bool((made[n] >= 0).any())}, target).items():
        own[made[name][made[name] >= 0]] = share
    costs = UnitCosts(int(numbers.max()) + 1, target, list(places.values()), terms, total, own)
    check_widths(costs)
    check_overrides(costs, made)
    check_reach(target, int(costs.cost(costs.size - costs.most_closed())), costs.total)
    return costs


def measure_weight_costs(
    model: TracedModel, channels: Channels, gates: dict[str, int], target: Target
) -> WeightCosts:  # fmt: skip
    """Give the cost that the target names as a function of the open weights or stripes, `gates` of each parameter.

    A weight costs 1 parameter, and a multiply-accumulate each time it is used. Raises as `measure_unit_costs` does.
    """
    if target.align > 1:
        raise TargetError(f"align={target.align} is for widths: give granularity='channel', or leave it out")
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
    return costs


def list_parameter_terms(
    model: TracedModel, channels: Channels, places: dict[tuple[str, int], Tensor]
) -> Iterator[Term]:  # fmt: skip
    """Go through the parameters that conversion leaves: those that a graph reads, or that no graph speaks for."""
    read = {str(n.target) for graph in model.graphs for n in graph.nodes if n.op in ("get_attr", "call_module")}
    names = {name for name, _ in named_tensors(model) if not is_traced(model, name) or not read.isdisjoint(paths(name))}
    left = {id(tensor) for name, tensor in named_tensors(model) if name in names}
    for name, shape in list_parameters(model, channels).items():
        if name in read or id(find_tensor(model, name)) in left:
            yield make_term(shape.numel(), [places[name, dim] for dim in range(len(shape)) if (name, dim) in places])


def product_term(channels: Channels, numbers: Tensor, product: Product) -> Term:
    """Give the multiply-accumulates of an op by the lengths of its sides."""
    sides = [numbers[units] for side in product.sides for units in units_of(channels, side)]
    return make_term(product.macs, sides)


def make_term(cost: int, sides: list[Tensor]) -> Term:
    """Split a dense cost into the lengths of those sides that have units, and a factor."""
    varied = tuple(side for side in sides if bool((side >= 0).any()))
    return Term(cost // math.prod(len(side) for side in varied), varied)


def units_of(channels: Channels, side: Side) -> Iterator[Tensor]:
    """Give the units along a side, [size], if it has any."""
    for ids in side.ids:
        units = compress(channels.units[ids])
        if varying(units) == [side.dim]:
            yield units.reshape(-1)
            return


def evaluated_products(model: TracedModel, channels: Channels) -> list[Product]:
    """List the products of the eval graphs."""
    evaluated = {region.eval for region in model.graphs.regions}
    return [product for product in channels.products if product.node.graph in evaluated]


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


def check_reach(target: Target, least: int, total: int) -> None:
    """Refuse a target that cannot be met, where at the least so much of the `total` cost remains."""
    if least <= total - count_closed(total, target.share):
        return
    floor = f"at channel granularity at least {target.least} of each group of channels stays"
    if target.align > 1:
        floor += f", in multiples of {target.align}"
    raise TargetError(
        f"{target} cannot be reached: with everything closed that may close {least / total:.2%} of the {target.cost} "
        f"remain ({least:,} of {total:,}; {floor}); ask for less, or leave fewer layers out by exclude, align, least "
        "or overrides"
    )


def list_parameters(model: nn.Module, channels: Channels) -> dict[str, torch.Size]:
    """The shapes of the parameters, shared ones once; a parametrized one counts as what is computed of it."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    traced = {name: shadow.shape for name, shadow in channels.parameters.items() if name not in buffers}
    known = {id(find_tensor(model, name)) for name in traced}
    rest = {name: parameter.shape for name, parameter in model.named_parameters() if id(parameter) not in known}
    return {name: torch.Size(shape) for name, shape in (traced | rest).items() if not is_parametrized_away(name)}


def is_parametrized_away(name: str) -> bool:
    """Whether a parameter only serves to compute another one, which is listed in its place."""
    return ".parametrizations." in f".{name}"


def paths(name: str) -> set[str]:
    """A parameter's name and those of all modules that it lies in."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
