"""How dead units leave a model: what they still say is carried over, parameters are sliced, graphs are mended."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.find_module import find_module
from fxprune.layer_functions import find_mode
from fxprune.model import TracedModel, find_tensor, named_tensors, share_tensors
from fxprune.passes.analyse import Channels, Shadow, is_traced
from fxprune.passes.find_dead import JOINS, OUT_OF_PLACE, Merge, Plan, cut, find_bias, find_used, is_empty, joined_dim
from fxprune.passes.living import use_living
from fxprune.passes.mend import Mender
from fxprune.shadow.ids import Reader, fold_positions
from fxprune.shadow.tensor import Ids, varying


def shrink(model: TracedModel, channels: Channels, plan: Plan) -> TracedModel:
    """Return a copy of `model` without the plan's dead units; `model` stays as it was.

    Raises:
        CannotMend: the graph has no form for so few units; those that the error names have to stay.
    """
    surgery = Surgery(model, copy_sharing(model, channels), channels, plan)
    surgery.carry_constants()
    surgery.slice_parameters()
    resize_modules(surgery.compact)
    for index in range(len(list(model.graphs))):
        surgery.cut_branches(index)
        surgery.mend(index)
    remove_unread(surgery.compact)
    resize_modules(surgery.compact)
    surgery.compact.set_graphs(surgery.compact.graphs)
    return surgery.compact


def copy_sharing(model: TracedModel, channels: Channels) -> TracedModel:
    """Copy a model without the contents of what `slice_parameters` gives contents of its own."""
    return copy.deepcopy(model, share_tensors(find_tensor(model, name) for name in channels.parameters))


@dataclass
class Surgery:
    """A model, its copy that gets smaller, and which node of the copy was which."""

    model: TracedModel
    compact: TracedModel
    channels: Channels
    plan: Plan

    def __post_init__(self) -> None:
        self.before, self.after = list(self.model.graphs), list(self.compact.graphs)
        self.copies = self.model.graphs.pair_nodes(self.compact.graphs)
        self.originals = {new: old for old, new in self.copies.items()}
        self.shadows = dict(self.channels.parameters)
        self.added: set[str] = set()  # names of new buffers

    def carry_constants(self) -> None:
        """Put what dead inputs add to their readers into biases, and at padded borders into one column."""
        done: set[str] = set()
        for reader, amount in self.plan.absorbed:
            self.add_to_bias(self.copies[reader.node], reader, amount, done)
        for merge in self.plan.merges:
            if str(merge.reader.source) not in done:
                merge_columns(self.compact.get_parameter(str(merge.reader.source)), merge)
                done.add(str(merge.reader.source))
        for old, value in self.plan.constants.items():
            self.replace_by_constant(old, value)
        self.mute_closed()

    def mute_closed(self) -> None:
        """Leave closed units that have to stay out of everything that would read or count them."""
        for muted in self.plan.muted:
            ids = fold_positions(muted.ids)
            operand = self.channels.find_operand(muted.node, muted.ids)
            if operand is not None:
                is_open = (~self.plan.closed[self.channels.units[ids]]).double()
                name = self.add_buffer(f"open_{muted.node.name}_{muted.number}", is_open, (ids,))
                use_living(self.copies[muted.node], self.copies[operand[0]], operand[1], name, folded=ids.dim() > 1)

    def add_to_bias(self, node: fx.Node, reader: Reader, amount: Tensor, done: set[str]) -> None:
        """Add [groups, rows] to the bias of a contraction; give it a bias if it has none."""
        bias = find_bias(node)
        owner, _, leaf = str(reader.source).rpartition(".")
        new = "bias" if leaf == "weight" else f"{leaf}_bias"
        name = str(bias.target) if isinstance(bias, fx.Node) else f"{owner}.{new}" if owner else new
        weight = self.compact.get_parameter(str(reader.source))
        flat = amount.reshape(-1).to(weight)
        if bias is None and name not in done:
            parameter = nn.Parameter(torch.zeros_like(flat), weight.requires_grad)
            find_module(self.compact, owner).register_parameter(new, parameter)
            self.shadows[name] = Shadow((len(flat),), (reader.rows.reshape(-1),), None)
        if name not in done:
            parameter = self.compact.get_parameter(name)
            parameter.data = parameter.data + flat
        done.add(name)
        if bias is None:
            with node.graph.inserting_before(node):
                made = node.graph.get_attr(name)
            if len(node.args) > 2:
                node.update_arg(2, made)
            else:
                node.update_kwarg("bias", made)

    def replace_by_constant(self, old: fx.Node, value: Tensor) -> None:
        """Read a buffer where a node always gives the same."""
        node = self.copies[old]
        values = self.channels.values[self.before.index(old.graph)]
        layout = values[old].layout
        value = value.reshape([1] * (len(values[old].shape) - value.dim()) + list(value.shape))
        if layout is not None and not layout.is_floating_point():
            value = value.to(layout.dtype)
        ids = tuple(t for t in values[old].ids if all(value.size(d) == t.size(d) for d in varying(t)))
        name = self.add_buffer(f"constant_{node.name}", value, ids)
        with node.graph.inserting_before(node):
            made = node.graph.get_attr(name)
        for user in list(node.users):
            if user.target in OUT_OF_PLACE and user.args[0] is node:
                user.target = OUT_OF_PLACE[user.target]
            user.replace_input_with(node, made)

    def add_buffer(self, name: str, value: Tensor, ids: Ids) -> str:
        """Add a buffer to the smaller model, whose channels have these ids; return its name.

        Floating point numbers are of the type of its parameters.

        An earlier conversion may have added one of that name, which the graph reads; both modes share theirs.
        """
        like = next(self.compact.parameters())
        value = value.to(like.device, like.dtype if value.is_floating_point() else None).clone()
        names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
        name = next(each for each in names if not hasattr(self.compact, each) or self.has_added(each, value))
        if name in self.added:
            return name
        self.added.add(name)
        self.compact.register_buffer(name, value)
        self.shadows[name] = Shadow(tuple(value.shape), ids, None)
        return name

    def has_added(self, name: str, value: Tensor) -> bool:
        """Whether this very buffer was added for the other mode."""
        return name in self.added and torch.equal(getattr(self.compact, name), value)

    def slice_parameters(self) -> None:
        """Cut the dead indexes out of every parameter and buffer, in place: tied parameters stay tied."""
        for name, shadow in self.shadows.items():
            owner, _, leaf = name.rpartition(".")
            tensor = getattr(find_module(self.compact, owner), leaf)
            alive, ids = self.plan.alive_along(self.channels, shadow), list(shadow.ids)
            data = cut(tensor.data, alive)
            for dim, keep in alive.items():
                ids = [t[(slice(None),) * dim + (keep,)] if t.size(dim) > 1 else t for t in ids]
            tensor.data = keep_layout(data, tensor) if alive else data.clone()
            tensor.grad = None
            self.shadows[name] = Shadow(tuple(data.shape), tuple(ids), None)

    def cut_branches(self, index: int) -> None:
        """Leave out joined operands that have become empty, and all that nobody needs any more."""
        graph, values = self.after[index], self.channels.values[index]
        for node in graph.nodes:
            if node.target not in JOINS or node not in self.originals or isinstance(node.args[0], fx.Node):
                continue
            dim = joined_dim(node) % len(values[self.originals[node]].shape)
            operands = [o for o in node.args[0] if not self.has_lost_all(o, values, dim)]
            node.update_arg(0, operands)
        remove_unused(graph, self.originals, self.channels)

    def has_lost_all(self, operand: fx.Node, values: dict[fx.Node, Any], dim: int) -> bool:
        """Whether nothing of a joined operand is left."""
        shadow = values[self.originals[operand]] if operand in self.originals else None
        return isinstance(shadow, Shadow) and is_empty(self.plan.dead, self.channels, shadow, dim)

    def mend(self, index: int) -> None:
        """Run the smaller graph on shadows and mend each node that no longer gives what it gave."""
        graph = self.after[index]
        mender = Mender(self.compact, self.model, graph, self.originals, self.channels, index, self.plan)
        mender.run_all(self.compact.graphs.of(graph).inputs, self.shadows)
        remove_unused(graph, self.originals, self.channels)
        graph.lint()


def keep_layout(data: Tensor, like: Tensor) -> Tensor:
    """Store what was cut out of a tensor channels last where that was."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(like.dim())
    if last is None or like.is_contiguous() or not like.is_contiguous(memory_format=last):
        return data
    return data.contiguous(memory_format=last)


def merge_columns(weight: nn.Parameter, merge: Merge) -> None:
    """Add the columns of dead constants to the keeper's: W_k += sum over c of W_c value_c / value_k."""
    value = merge.reader.constant.value
    ratio = torch.where(merge.columns, value / value[:, merge.keeper : merge.keeper + 1], 0.0)
    # [groups, rows, columns, ...], or with rows and columns transposed
    grouped = weight.data.to(torch.float64, copy=True).reshape(len(ratio), -1, *weight.shape[1:])
    dim = 2 if merge.reader.dim == 1 else 1
    shape = [len(ratio)] + [ratio.size(1) if d == dim else 1 for d in range(1, grouped.dim())]
    grouped.select(dim, merge.keeper).add_((grouped * ratio.view(shape).to(grouped.device)).sum(dim))
    weight.data = grouped.flatten(0, 1).to(weight.dtype)


def remove_unused(graph: fx.Graph, originals: dict[fx.Node, fx.Node], channels: Channels) -> None:
    """Remove the nodes that no output needs."""
    moves = {new for new, old in originals.items() if old in channels.moves}
    used = set(find_used(graph, moves, lambda node: False))
    for node in reversed(list(graph.nodes)):
        if node not in used:
            graph.erase_node(node)


def remove_unread(model: TracedModel) -> None:
    """Remove the parameters and buffers that neither graph reads any more; their names stay, with None."""
    read = {str(n.target) for graph in model.graphs for n in graph.nodes if n.op in ("get_attr", "call_module")}
    tied = {id(t) for name, t in named_tensors(model) if name in read or name.rpartition(".")[0] in read}
    for path, module in list(model.named_modules()):
        for name in [*module._parameters.keys(), *module._buffers.keys()]:  # of scripted modules, too
            full = f"{path}.{name}" if path else name
            parts = full.split(".")
            inside = any(".".join(parts[:length]) in read for length in range(1, len(parts) + 1))
            if not inside and id(getattr(module, name)) not in tied and is_traced(model, full):
                setattr(module, name, None)
                if name == "running_mean":  # it is not called any more, and those who measure statistics ask this
                    module.track_running_stats = False


def resize_modules(model: TracedModel) -> None:
    """Let the attributes of layers say what their parameters have become."""
    groups: dict[str, Any] = {}
    for node in (node for graph in model.graphs for node in graph.nodes if node.op == "call_function"):
        if len(node.args) == 7 and isinstance(node.args[1], fx.Node):
            groups[str(node.args[1].target).rpartition(".")[0]] = node.args[6]
        elif node.target is F.group_norm and len(node.args) == 5 and isinstance(node.args[2], fx.Node):
            groups[str(node.args[2].target).rpartition(".")[0]] = node.args[1]
    for path, module in model.named_modules():
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            resize_recurrent(module)
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.modules.batchnorm._NormBase) and weight is None:
            weight = module.running_mean
        if not isinstance(weight, Tensor):
            continue
        if isinstance(module, nn.modules.conv._ConvNd):
            if not module.transposed:
                module.groups = groups.get(path, module.groups)
            rows, columns = (1, 0) if module.transposed else (0, 1)
            module.out_channels = weight.size(rows) * (module.groups if module.transposed else 1)
            module.in_channels = weight.size(columns) * (1 if module.transposed else module.groups)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            module.num_features = weight.size(0)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            module.normalized_shape = tuple(weight.shape)
        elif isinstance(module, nn.GroupNorm):
            module.num_groups, module.num_channels = groups.get(path, module.num_groups), weight.size(0)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = weight.size(0)
        elif isinstance(module, nn.Embedding):
            module.embedding_dim = weight.size(1)


def resize_recurrent(module: nn.RNNBase | nn.RNNCellBase) -> None:
    """Let the attributes of a recurrent layer or cell say what its weights have become."""
    layer = "_l0" if isinstance(module, nn.RNNBase) else ""
    first, again = (getattr(module, f"weight_{part}{layer}", None) for part in ("ih", "hh"))
    if not isinstance(first, Tensor) or not isinstance(again, Tensor):
        return
    gates = {"LSTM": 4, "GRU": 3}.get(find_mode(module), 1)
    module.input_size, module.hidden_size = first.size(1), again.size(0) // gates
    if getattr(module, "proj_size", 0):
        module.proj_size = again.size(1)
