"""What will a run of the compact model take on a runtime, as a function of which units are open?

    time = sum over layers of table(rows, columns)
         + sum over other products of rate * multiply-accumulates + sum over other ops of rest * elements written

The tables come of layers that are timed one by one, at several widths. A multiply-accumulate of the other products
takes as long as one of theirs, and the other ops share what is left of the time of the whole dense model, which is
timed as well. All is in whole picoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from fxprune.export.benchmark import benchmark
from fxprune.export.interface import read_inputs
from fxprune.export.runtimes.registry import find_runtime
from fxprune.layer_times.widths import WideLayer, Width, time_widths
from fxprune.methods.targets import Latency
from fxprune.methods.unit_costs import Steps, Term
from fxprune.model import TracedModel, as_example
from fxprune.passes.analyse import Channels, Shadow
from fxprune.passes.cost_terms import evaluated_products, make_term, name_of, product_term, units_of
from fxprune.shadow.ids import Layer, Product, Side
from fxprune.sharding import on_first_rank
from fxprune.vector_width import VECTOR

PICOSECONDS = 1_000_000_000
"""In a millisecond."""

SECONDS = 2.0
"""For the timing of the whole model."""


def measure_latency_terms(model: TracedModel, channels: Channels, numbers: Tensor, target: Latency) -> list[Term]:
    """Time the layers and the whole model; `numbers` are those of the units, -1 for the pinned.

    Raises ExportError where the runtime or the exporter refuses the model.
    """
    products = evaluated_products(model, channels)
    terms = time_products(products, channels, numbers, target, find_batch(model))
    written = list(list_written(model, channels, {product.node for product in products}))
    elements = sum(math.prod(shadow.shape) for _, shadow in written)
    rest = on_first_rank(lambda: time_whole(model, target)) - sum(count_dense(term) for term in terms)
    for node, shadow in written if rest > 0 else ():
        sides = [numbers[u] for d, n in enumerate(shadow.shape) for u in units_of(channels, Side(shadow.ids, d, n))]
        terms.append(make_term(rest * math.prod(shadow.shape) // elements, sides, node.name))
    return terms


def time_products(
    products: list[Product], channels: Channels, numbers: Tensor, target: Latency, batch: int
) -> list[Term]:  # fmt: skip
    """Give the tables of the layers, and the other products at the rate of these; `batch` is that of the example."""
    layers = {p: widen(p.layer, channels, numbers, target.batch_size, batch) for p in products if p.layer is not None}
    tables = on_first_rank(lambda: time_widths(layers.values(), find_runtime(target.runtime), target.threads))
    terms = []
    for product, layer in layers.items():
        assert product.layer is not None
        factor = torch.from_numpy(tables[layer] * PICOSECONDS).round().long()
        sides = zip((product.layer.rows, product.layer.columns), layer.widths, strict=False)
        steps = tuple(Steps(number_side(channels, numbers, side), width.block) for side, width in sides)
        terms.append(Term(factor, (), steps, name_of(product)))
    rate = sum(count_dense(term) for term in terms) / max(1, sum(product.macs for product in layers))
    others = [product for product in products if product.layer is None]
    return terms + [product_term(channels, numbers, product, rate) for product in others]


def widen(layer: Layer, channels: Channels, numbers: Tensor, size: int, batch: int) -> WideLayer:
    """Say at which widths a layer is to be timed, with `size` samples instead of `batch`."""
    each = layer.rows.size // layer.groups  # of a group
    loses_groups = layer.groups > 1 and 1 in (each, layer.columns.size)
    rows = find_width(channels, numbers, layer.rows, math.lcm(VECTOR, each if loses_groups else layer.groups))
    columns = find_width(channels, numbers, layer.columns, math.ceil(VECTOR / layer.groups))
    samples = max(1, layer.input[0] * size // batch)
    settings = layer.kernel, layer.stride, layer.padding, layer.dilation
    return WideLayer(samples, layer.input[2:], rows, columns, layer.groups, loses_groups, *settings)


def find_width(channels: Channels, numbers: Tensor, side: Side, block: int) -> Width:
    """Give the width of a side, in steps of a block where units may go."""
    varies = bool((number_side(channels, numbers, side) >= 0).any())
    return Width(side.size, min(block, side.size) if varies else side.size)


def number_side(channels: Channels, numbers: Tensor, side: Side) -> Tensor:
    """Give the number of the unit at every index of a side, -1 where there is none."""
    units = next(units_of(channels, side), None)
    return torch.full((side.size,), -1) if units is None else numbers[units]


def count_dense(term: Term) -> int:
    """Give what a term costs with all units open."""
    factor = term.factor if isinstance(term.factor, int) else int(term.factor.flatten()[-1])
    return factor * math.prod(len(side) for side in term.sides)


def list_written(
    model: TracedModel, channels: Channels, products: set[fx.Node]
) -> Iterator[tuple[fx.Node, Shadow]]:  # fmt: skip
    """Go through what the eval graphs compute besides products: the nodes, and what is known of their results."""
    evaluated = [region.eval for region in model.graphs.regions]
    for graph, values in zip(model.graphs, channels.values, strict=True):
        for node in graph.nodes if graph in evaluated else ():
            shadow = values.get(node)
            computed = node.op.startswith("call_") and node not in channels.moves and node not in products
            if computed and isinstance(shadow, Shadow) and shadow.layout is not None:
                yield node, shadow


def time_whole(model: TracedModel, target: Latency) -> int:
    """Time the dense model, in picoseconds."""
    timed = benchmark(
        {"dense": model}, runtimes=(target.runtime,), batch_sizes=(target.batch_size,), threads=target.threads,
        seconds=SECONDS, example_inputs=as_example(model.inputs),
    )  # fmt: skip
    return round(timed.timings[0].median * PICOSECONDS)


def find_batch(model: TracedModel) -> int:
    """How many samples the example inputs have."""
    return read_inputs(model, as_example(model.inputs)).batch
