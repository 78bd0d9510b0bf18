"""Which summands make up a cost that is counted: of each parameter, and of each op, by the lengths of its sides."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fxprune.methods.unit_costs import Term
from fxprune.model import TracedModel, find_tensor, named_tensors
from fxprune.passes.analyse import Channels, is_traced
from fxprune.shadow.ids import Product, Side
from fxprune.shadow.tensor import compress, varying


def list_parameter_terms(
    model: TracedModel, channels: Channels, places: dict[tuple[str, int], Tensor]
) -> Iterator[Term]:  # fmt: skip
    """Go through the parameters that conversion leaves: those that a graph reads, or that no graph speaks for."""
    read = {str(n.target) for graph in model.graphs for n in graph.nodes if n.op in ("get_attr", "call_module")}
    names = {name for name, _ in named_tensors(model) if not is_traced(model, name) or not read.isdisjoint(paths(name))}
    left = {id(tensor) for name, tensor in named_tensors(model) if name in names}
    for name, shape in list_parameters(model, channels).items():
        if name in read or id(find_tensor(model, name)) in left:
            sides = [places[name, dim] for dim in range(len(shape)) if (name, dim) in places]
            yield make_term(shape.numel(), sides, name.removesuffix(".weight"))


def product_term(channels: Channels, numbers: Tensor, product: Product, rate: float = 1) -> Term:
    """Give the multiply-accumulates of an op, at so much each, by the lengths of its sides."""
    sides = [numbers[units] for side in product.sides for units in units_of(channels, side)]
    return make_term(round(product.macs * rate), sides, name_of(product))


def make_term(cost: int, sides: list[Tensor], name: str = "") -> Term:
    """Split a dense cost into the lengths of those sides that have units, and a factor."""
    varied = tuple(side for side in sides if bool((side >= 0).any()))
    return Term(cost // math.prod(len(side) for side in varied), varied, name=name)


def name_of(product: Product) -> str:
    """The layer or op of a product, for messages."""
    return (product.source or product.node.name).removesuffix(".weight")


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
