"""Where the masks go: into the graphs, between a parameter and the op that uses it.

At weight granularity every weight of a contraction gets a mask. At channel granularity a unit's gate sits
on the columns of the contractions that read it: exactly once on every path from where the unit is made to
where it is summed away, where no constant arises.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.errors import TargetError
from fxprune.find_module import find_module
from fxprune.mask_modules import UnitMask
from fxprune.masks import Granularity, Masks
from fxprune.methods.base import Method
from fxprune.methods.scores import Slice
from fxprune.methods.targets import Target
from fxprune.model import PreparedModel, TracedModel, find_tensor
from fxprune.passes.analyse import Channels
from fxprune.passes.find_pins import find_pins
from fxprune.passes.living import can_live, use_living
from fxprune.passes.measure_costs import measure_unit_costs, measure_weight_costs
from fxprune.shadow.ids import PINNED, fold_positions


@dataclass(frozen=True, eq=False)
class Muted:
    """A node that leaves closed channels of an input out: where they are, and the record of which are open."""

    node: fx.Node
    x: fx.Node
    dim: int
    index: Tensor  # [channels], the number of each one's unit, or -1
    is_open: str


def insert_weight_masks(
    model: TracedModel, channels: Channels, method: Method, target: Target | None, excluded: set[str],
    granularity: Granularity = "weight", rectangles: bool = False,
) -> PreparedModel:  # fmt: skip
    """Give every weight of a convolution or linear layer a mask of its own, but the excluded ones.

    At stripe granularity those are the convolutions, and a gate holds for all input channels of a position; with
    `rectangles` what a filter keeps is a rectangle of its kernel.
    """
    masks = Masks(method, target, granularity, rectangles=rectangles)
    gates: dict[str, int] = {}
    shared, left_out = find_called_parameters(model), excluded | find_tables(model)
    for name, rows in channels.weights.items():
        weight = find_tensor(model, name)
        fits = granularity == "weight" or weight.dim() > 2
        if fits and name not in left_out and id(weight) not in shared:
            norms = find_norms(model, channels, name, rows) if method.mutes_norms else []
            gates[name] = masks.add_weight_mask(name, weight, rows, norms).measure(weight).numel()
    if not masks.weight_masks:
        kinds = "convolution" if granularity == "stripe" else "convolution or linear layer"
        raise TargetError(f"no weight is left to prune: the model has no {kinds} that is not excluded")
    if target is not None:
        masks.costs = measure_weight_costs(model, channels, gates, target)
    pinned = {str(pin): pin.rows for pin in find_pins(channels)}
    prepared = PreparedModel(model, masks, pinned)
    for graph in prepared.graphs:
        for name in channels.weights:
            if key_of(name) in masks.weight_masks:
                insert_mask(graph, name, f"fxprune.weight_masks.{key_of(name)}")
    prepared.set_graphs(prepared.graphs)
    return prepared


def insert_unit_masks(
    model: TracedModel, channels: Channels, method: Method, target: Target | None, excluded: set[str]
) -> PreparedModel:  # fmt: skip
    """Give every prunable unit a gate, on the columns of all contractions that read it."""
    numbers = number_units(model, channels, excluded, find_norm_scales(model) if method.scored_by == "norms" else None)
    count = int(numbers.max()) + 1
    if count == 0 and method.scored_by == "norms":
        raise TargetError(f"no channel is left to prune: {type(method).__name__} prunes what a batch norm scales")
    if count == 0:
        raise TargetError(explain_none(model, channels, excluded))
    slices = find_slices(model, channels, numbers)
    if method.scored_by == "norms":
        scales = find_norm_scales(model)
        slices = [place for place in slices if place.parameter in scales]
    costs = measure_unit_costs(model, channels, numbers, target) if target is not None else None
    masks = Masks(method, target, "channel", units=count, slices=slices, costs=costs)
    maskable = find_maskable(model, channels)
    masked: dict[str, UnitMask] = {}
    for reader in channels.readers:
        if reader.source in maskable and reader.source not in masked:
            columns = reader.columns[0] if reader.dim == 1 else reader.columns.reshape(-1)  # transposed: all groups
            index = numbers[channels.units[columns]]
            if bool((index >= 0).any()):
                masked[reader.source] = masks.add_unit_mask(reader.source, reader.dim, index)
    muted: list[Muted] = []
    for node, ids in find_muted(channels, maskable):
        index = numbers[channels.units[fold_positions(ids)]]
        operand = channels.find_operand(node, ids)
        if operand is not None and bool((index >= 0).any()):
            muted.append(Muted(node, *operand, index, add_alive(masks, node, index)))
    pinned = {str(pin): pin.rows for pin in find_pins(channels)}
    prepared = PreparedModel(model, masks, pinned)
    alike = model.graphs.pair_nodes(prepared.graphs)
    for each in muted:
        use_living(alike[each.node], alike[each.x], each.dim, each.is_open, each.index.dim() > 1)
    for graph in prepared.graphs:
        for name in masked:
            insert_mask(graph, name, f"fxprune.unit_masks.{key_of(name)}")
    prepared.set_graphs(prepared.graphs)
    return prepared


def explain_none(model: TracedModel, channels: Channels, excluded: set[str]) -> str:
    """Say why no unit of a model can be pruned: what the user excludes, or else what pins most rows."""
    found = int(number_units(model, channels, set(), None).max()) + 1
    if found:
        return f"no channel is left to prune: exclude leaves out all {found} that could be; exclude fewer layers"
    reasons = [f"{pin.rows} rows: {pin}" for pin in find_pins(channels)[:3]] or ["no layer has two"]
    return (
        f"no channel is left to prune: all are outputs of the model, or tied to what needs them ({'; '.join(reasons)})"
    )


def add_alive(masks: Masks, node: fx.Node, index: Tensor) -> str:
    """Record which of a node's channels are open; give the name of the buffer."""
    name = f"{node.name}_{len(masks.alive)}"
    masks.add_alive(name, index)
    return f"fxprune.alive.{key_of(name)}.open"


def number_units(
    model: TracedModel, channels: Channels, excluded: set[str], scored: set[str] | None = None
) -> Tensor:  # fmt: skip
    """Number the prunable units from 0, [units]; -1 for all others.

    Prunable is what some parameter makes, and some contraction reads, or some op counts, if all that do so can leave it
    out: by a mask on their weight, or by a mute on their input; and, if `scored` names parameters, what lives in one of
    those.
    """
    allowed = torch.zeros(len(channels.units), dtype=torch.bool)
    for ids in [*(reader.columns for reader in channels.readers), *(mix.ids for mix in channels.mixes)]:
        allowed[channels.units[ids]] = True
    for node, ids in find_muted(channels, find_maskable(model, channels)):
        if not can_live(node) or channels.find_operand(node, ids) is None:
            allowed[channels.units[ids]] = False
    for name, _, units in channels.positions:
        if name in excluded:
            allowed[units] = False
    if scored is not None:
        living = torch.zeros_like(allowed)
        for name, _, units in channels.positions:
            if name in scored:
                living[units] = True
        allowed &= living
    allowed &= find_made(model, channels)
    allowed[PINNED] = False
    return torch.where(allowed, allowed.cumsum(0) - 1, -1)


def find_made(model: TracedModel, channels: Channels) -> Tensor:
    """Which units a parameter makes, bool [units]: not those of constant tables, which are only read.

    Nor those that nothing scores, such as the elements of two vectors whose product is summed.
    """
    tables = find_tables(model)
    rows, owned, stored = (torch.zeros(len(channels.units), dtype=torch.bool) for _ in range(3))
    for name, dim, units in channels.positions:
        if name in tables:
            stored[units] = True
        elif is_scored(model, name):
            owned[units] = True
        if channels.weights.get(name) == dim:
            rows[units] = True
    return rows | (owned & ~stored)


def find_tables(model: TracedModel) -> set[str]:
    """The buffers, by all their names: constants, which no training learns."""
    return {name for name, _ in model.named_buffers(remove_duplicate=False)}


def find_muted(channels: Channels, maskable: set[str]) -> Iterator[tuple[fx.Node, Tensor]]:
    """Go through the nodes that read or count channels without a mask: node, and ids of the channels."""
    for mix in channels.mixes:
        yield mix.node, mix.ids
    for reader in channels.readers:
        if reader.source not in maskable:
            yield reader.node, reader.columns.reshape(-1)


def find_maskable(model: TracedModel, channels: Channels) -> set[str]:
    """The weights that only contractions use, all along the same dimension."""
    dims: dict[str, set[int]] = {}
    for reader in channels.readers:
        if reader.source is not None:
            dims.setdefault(reader.source, set()).add(reader.dim)
    called = find_called_parameters(model)
    return {
        name
        for name, along in dims.items()
        if len(along) == 1 and name not in channels.used and id(find_tensor(model, name)) not in called
    }


def find_called_parameters(model: TracedModel) -> set[int]:
    """The parameters, by identity, that modules read which the graphs call as a whole, as an embedding does."""
    calls = {str(n.target) for g in model.graphs for n in g.nodes if n.op == "call_module"}
    return {id(p) for target in calls for p in find_module(model, target).parameters()}


def find_slices(model: TracedModel, channels: Channels, numbers: Tensor) -> list[Slice]:
    """List where prunable units appear in what scores them: weights, and the scales of norms."""
    slices = []
    buffers = {name for name, _ in model.named_buffers()}
    for name, dim, units in channels.positions:
        index = numbers[units]
        if name not in buffers and is_scored(model, name) and bool((index >= 0).any()):
            slices.append(Slice(name, dim, index.to(find_tensor(model, name).device)))
    return slices


def is_scored(model: TracedModel, name: str) -> bool:
    """Whether the magnitudes of a tensor say how much its channels matter: not those of shifts."""
    return find_tensor(model, name).dim() > 1 or name.endswith("weight")


def find_norm_scales(model: TracedModel) -> set[str]:
    """The scales of the batch norms, by name."""
    norms = [(path, module) for path, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return {f"{path}.weight" if path else "weight" for path, module in norms if module.affine}


def find_norms(model: TracedModel, channels: Channels, name: str, rows: int) -> list[tuple[str, Tensor]]:
    """List scales and shifts of the batch norms whose every channel is a row of this weight, and of no other.

    With each stands the row of each of its channels.
    """
    units = channels.units_along(name, rows)
    others = [channels.units_along(other, dim) for other, dim in channels.weights.items() if other != name]
    own = units[~torch.isin(units, torch.cat([*others, torch.tensor([PINNED])]))]
    found = []
    for scale in sorted(find_norm_scales(model)):
        for norm in (scale, f"{scale.removesuffix('weight')}bias"):
            if norm in channels.parameters:
                living = channels.units_along(norm, 0)
                if len(living) and bool(torch.isin(living, own).all()):
                    found.append((norm, (living[:, None] == units).to(torch.int8).argmax(1)))
    return found


def insert_mask(graph: fx.Graph, name: str, mask: str) -> None:
    """Put a mask behind the node that gets a parameter."""
    for node in list(graph.nodes):
        if node.op == "get_attr" and node.target == name:
            with graph.inserting_after(node):
                masked = graph.call_module(mask, (node,))
            masked.meta = dict(node.meta)
            node.replace_all_uses_with(masked, delete_user_cb=lambda user, m=masked: user is not m)


def key_of(name: str) -> str:
    """The name of a parameter's mask."""
    return name.replace(".", "-")
