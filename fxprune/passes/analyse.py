"""Which channels of a model are tied, where they live, and what is known of them: one shadow run of its graphs."""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from fxprune.errors import TraceError
from fxprune.find_module import find_module
from fxprune.model import Inputs, TracedModel, bind_inputs, find_tensor, in_eval_mode, named_tensors, tensors_in
from fxprune.passes.guards import check_failure, check_guard
from fxprune.passes.literals import find_literals
from fxprune.passes.living import can_live
from fxprune.passes.sized_dims import Sizes
from fxprune.recurrent import FOLLOWED
from fxprune.run_alone import plain_attention
from fxprune.shadow.ids import PINNED, IdTable, Mix, Pin, Product, Reader, spread_positions
from fxprune.shadow.products import note_product
from fxprune.shadow.rules import ELEMENTWISE, find_rule
from fxprune.shadow.tensor import Call, Constant, Ids, ShadowMode, ShadowTensor, varying

VIEWED = (torch.ops.aten.view, torch.ops.aten._unsafe_view, torch.ops.aten.reshape)
"""What a node of a view calls."""

EQUAL = ((operator.eq, True), (operator.ne, False))
"""Questions, and the answers that say that two numbers are equal."""


@dataclass(frozen=True, eq=False)
class Shadow:
    """What the analysis knows of one tensor of the graph."""

    shape: tuple[int, ...]
    ids: Ids
    constant: Constant | None
    made: Tensor | None = None  # the values, where the code makes them of numbers alone, as `arange` does
    layout: Tensor | None = None  # on the meta device: its type and strides; None where no input reaches it

    def along(self, dim: int) -> list[Tensor]:
        """The ids that vary along this dimension and no other, [size] each."""
        return [t.reshape(-1) for t in self.ids if varying(t) == [dim]]


@dataclass(frozen=True)
class Channels:
    """The units of a model: which ids are one, and where each id lives.

    `units[id]` is the unit of an id, 0 for what is pinned. `parameters[name]` holds the ids of a
    parameter or buffer, `values[graph][node]` the shadow of each node's result, and
    `effects[graph][node]` that of the tensor which the node wrote to in place.
    """

    units: Tensor  # [ids]
    parameters: dict[str, Shadow]
    values: list[dict[fx.Node, Any]]  # by graph, in the order of `Graphs`
    effects: list[dict[fx.Node, Shadow]]
    moves: set[fx.Node]  # nodes that only move elements
    elementwise: set[fx.Node]  # nodes that work position by position
    plain: set[fx.Node]  # nodes that take no numbers of channels: with fewer channels they give fewer, as they are
    widths: set[fx.Node]  # numbers that no batch or image size changes: of channels, or held by guards
    weights: dict[str, int]  # the matrices and kernels of contractions, and which dimension their rows are
    readers: list[Reader]
    mixes: list[Mix]
    products: list[Product]
    used: set[str]  # weights of contractions that something else uses, too
    pins: dict[Pin, Tensor]
    ties: list[tuple[fx.Node | None, Tensor]]  # what united ids: the node, and the ids at both ends, [2, n]
    whole_heads: bool  # what is one unit of attention

    def units_along(self, name: str, dim: int) -> Tensor:
        """The unit of each index of a parameter's dimension, [size]."""
        shadow = self.parameters[name]
        found = shadow.along(dim)
        return self.units[found[0]] if found else torch.zeros(shadow.shape[dim], dtype=torch.int64)

    def find_operand(self, node: fx.Node, ids: Tensor) -> tuple[fx.Node, int] | None:
        """Which input of a node has the channels `ids` along one of its dimensions, and which; None if none has.

        Of a contraction's inputs preferably one that no input of the model reaches: a weight that is computed.
        """
        values = next(results for results in self.values if node in results)
        operands = [n for n in node.all_input_nodes if isinstance(values[n], Shadow)]
        if any(reader.node is node for reader in self.readers):
            operands.sort(key=lambda n: values[n].layout is not None)
        for operand in operands:
            found = set()
            for t in values[operand].ids:
                for dim in varying(t):
                    lines = self.units[t].movedim(dim, 0).reshape(t.size(dim), -1)
                    wanted = spread_positions(self.units[ids], t.size(dim))[:, None]
                    if len(lines) == len(wanted) and bool((lines == wanted).all()):
                        found.add((operand, dim))
            if len(found) > 1:  # as of a square of channels: that along which the op runs
                named = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
                found = {(n, d) for n, d in found if isinstance(named, int) and d == named % len(values[n].shape)}
            if len(found) == 1:
                return found.pop()
        return None

    @functools.cached_property
    def positions(self) -> list[tuple[str, int, Tensor]]:
        """Every dimension of every parameter or buffer that has channels: name, dimension, units."""
        lines = ((name, dim, s.along(dim)) for name, s in self.parameters.items() for dim in range(len(s.shape)))
        return [(name, dim, self.units[ids[0]]) for name, dim, ids in lines if ids]


def analyse(model: TracedModel, constants: bool = True, whole_heads: bool = True) -> Channels:
    """Run all graphs of a model on shadows and unite the ids of all.

    The model itself is not run: its parameters are read, nothing is written, and its modes are put back.
    Without `constants` nothing is known of values, which saves reading all weights. `whole_heads`: where
    attention meets heads and their inner channels, whole heads are units, or else the same channel of each.
    """
    table = IdTable(can_live=can_live, whole_heads=whole_heads)
    run = ShadowRun(model, table, constants)
    for name, tensor in tensors_of(model):
        run.add_parameter(name, tensor)
    values, effects = [], []
    pin_shared(model, run)
    for graph in model.graphs:
        results, written = run.run(graph, model.graphs.of(graph).inputs)
        values.append(results)
        effects.append(written)
    units = table.resolve()
    pins = {pin: torch.cat(ids) for pin, ids in table.pins.items()}
    return Channels(
        units,
        run.parameters,
        values,
        effects,
        run.moves,
        run.elementwise,
        run.plain,
        run.widths,
        {name: rows for name, rows in table.weights.items() if len(run.parameters[name].shape) > 1},
        agree_on_constants(table.readers),
        table.mixes,
        table.products,
        table.used,
        pins,
        list(zip(table.tied_by, table.edges, strict=True)),
        whole_heads,
    )


def agree_on_constants(readers: list[Reader]) -> list[Reader]:
    """Know of what a weight reads only what all graphs know alike: its bias, which takes that in, is one for all."""
    graphs: dict[str | None, set[fx.Graph]] = {}
    for reader in readers:
        graphs.setdefault(reader.source, set()).add(reader.node.graph)
    shared = {source for source, users in graphs.items() if source is not None and len(users) > 1}
    agreed: dict[tuple[str | None, torch.Size], Constant] = {}  # a weight and its transpose are not absorbed anyway
    for reader in readers:
        if reader.source in shared:
            key, (value, known) = (reader.source, reader.constant.value.shape), reader.constant
            before = agreed.get(key, reader.constant)
            agreed[key] = Constant(before.value, before.known & known & (before.value == value))
    return [replace(r, constant=agreed[r.source, r.constant.value.shape]) if r.source in shared else r for r in readers]


def tensors_of(model: TracedModel) -> Iterator[tuple[str, Tensor]]:
    """Go through the parameters and buffers of what was traced, each under its first name there."""
    seen: set[int] = set()
    whole = model.user is None
    for name, tensor in named_tensors(model):
        if id(tensor) not in seen and not name.startswith("fxprune.") and (whole or is_traced(model, name)):
            seen.add(id(tensor))
            yield name, tensor


def is_traced(model: TracedModel, name: str) -> bool:
    """Whether a name lies in one of the regions of the model that have a graph."""
    return any(not region.path or f"{name}.".startswith(f"{region.path}.") for region in model.graphs.regions)


def pin_shared(model: TracedModel, run: ShadowRun) -> None:
    """Pin parameters that code outside of what was traced uses, too."""
    outside = {id(tensor): name for name, tensor in named_tensors(model) if not is_traced(model, name)}
    for _, tensor in tensors_of(model):
        if id(tensor) in outside:
            reason = f"{outside[id(tensor)]} is the same parameter, and is used by code that could not be traced"
            run.table.pin(run.mode.wrap(tensor).ids, reason)


class ShadowRun:
    """One run of graphs on shadows, that writes into one table of ids."""

    def __init__(self, model: TracedModel, table: IdTable, constants: bool = True) -> None:
        self.model, self.table, self.constants = model, table, constants
        follow = weakref.WeakMethod(self.follow)  # a circle would hold the weights until Python looks for circles
        self.mode = ShadowMode(lambda call: follow()(call), table.fresh)  # type: ignore[misc]
        self.parameters: dict[str, Shadow] = {}
        self.own_ids: list[tuple[int, int]] = []  # ranges of ids that parameters have, not what code makes of sizes
        self.computed: dict[str, Tensor] = {}  # what each name stands for
        self.moves: set[fx.Node] = set()
        self.elementwise: set[fx.Node] = set()
        self.plain: set[fx.Node] = set()
        self.widths: set[fx.Node] = set()
        self.fixed: set[tuple[fx.Node, int]] = set()  # dimensions of which a guard says that they have one size only
        self.only_moved = self.only_elements = True
        self.called = self.counts = False  # whether the node that runs called an op; may take numbers of channels
        self.counted: dict[fx.Node, list[Tensor]] = {}  # numbers in which channels are counted, and their ids
        self.mixed: list[Tensor] = []
        self.is_inside = False  # whether the node that runs takes tensors, so that those which it makes are its own
        self.sized = False  # whether the node that runs takes numbers that the size of an input gives
        self.sized_dims: Sequence[bool | None] = ()  # of a view: which dimensions these are

    def add_parameter(self, name: str, tensor: Tensor, ids: Ids | None = None) -> None:
        """Give a parameter its ids, and let the run know it wherever it appears."""
        given = self.table.fresh(tensor.shape) if ids is None else ids
        shadow = ShadowTensor(tensor.detach().cpu(), given)
        self.own_ids += [(int(t.min()), int(t.max())) for t in given if t.numel()]
        self.parameters[name] = Shadow(tuple(tensor.shape), shadow.ids, None)
        self.mode.adopt(tensor, shadow)

    def follow(self, call: Call) -> list[tuple[Ids, Constant | None]]:
        """Apply the op's rule to both shadows."""
        rule = find_rule(call)
        call.moves = rule.moves
        self.only_moved &= rule.moves
        self.only_elements &= rule is ELEMENTWISE
        if any(out.numel() for out in call.outputs):  # batch norm makes an empty tensor first
            self.counts |= self.called or (rule.counts and call.argument("groups") != 1)
            self.called = True
        random = torch.Tag.nondeterministic_seeded in call.op.tags or "empty" in call.op.overloadpacket.__name__
        call.made = not random and all(t.made is not None for t in call.tensors)
        note_product(self.table, call)
        if not call.tensors:
            call.sized = self.sized
            fresh = [self.table.fresh(out.shape) for out in call.outputs]
            for out, new in zip(call.outputs, fresh, strict=True):
                if self.is_inside and is_uneven(out):
                    self.table.pin(new, "a table inside of an op, whose entries are no channels")
            return [(new, None) for new in fresh]
        call.sized = self.sized or any(t.sized for t in call.tensors)
        views = call.op.overloadpacket in VIEWED and len(self.sized_dims) == call.outputs[0].dim()
        call.sized_dims = self.sized_dims if views else ()
        if rule is ELEMENTWISE:
            for counted in self.mixed:
                self.table.pin(counted, "a number of channels times a size takes part in arithmetic")
        readers = len(self.table.readers)
        ids = [tuple(filter(is_channel, each)) for each in rule.ids(self.table, call)]
        if not rule.moves:
            read = {reader.source for reader in self.table.readers[readers:]}
            self.table.used |= {t.source for t in call.tensors if t.source is not None and t.source not in read}
        known: list[Constant | None] = [None] * len(ids)
        if self.constants and any(not t.is_real for t in call.tensors) and (rule.moves or not call.sized):
            known = rule.constants(call)
        if call.sized:
            known = [k if k is not None and varies_by_channel(k, i) else None for k, i in zip(known, ids, strict=True)]
        return list(zip(ids, known, strict=True))

    def run(self, graph: fx.Graph, inputs: Inputs) -> tuple[dict[fx.Node, Any], dict[fx.Node, Shadow]]:
        """Run one graph; return the shadow of each result, and of each tensor written in place."""
        env: dict[fx.Node, Any] = {}
        results: dict[fx.Node, Any] = {}
        effects: dict[fx.Node, Shadow] = {}
        named = bind_shadows(graph, inputs)
        last_use = find_last_uses(graph)
        with torch.no_grad(), in_eval_mode(self.model), self.quietly():
            for node in graph.nodes:
                self.table.node, self.only_moved, self.only_elements = node, True, True
                self.called = self.counts = False
                self.sized_dims = Sizes(results, self.widths, self.counts_channels).find_dims(node)
                env[node] = self.run_or_explain(node, env, named)
                written = find_written(node)
                if written is not None:
                    effects[node] = freeze(env[written])
                results[node] = freeze(env[node])
                if type(env[node]) in (int, float):
                    self.note_number(node, results)
                elif node.op == "output":
                    self.pin_counted(node, results)
                elif node.target is check_guard:
                    self.note_fixed(node, results)
                if node.op.startswith("call_"):
                    self.moves |= {node} if self.only_moved else set()
                    self.elementwise |= {node} if self.called and self.only_elements else set()
                    self.plain |= {node} if written is None and self.is_plain(node, results) else set()
                for used in last_use.get(node, ()):
                    del env[used]
        return results, effects

    def is_plain(self, node: fx.Node, results: dict[fx.Node, Any]) -> bool:
        """Whether a node computes one tensor of others, without numbers that could be numbers of channels."""
        result = results[node]
        if not isinstance(result, Shadow) or result.layout is None or (self.called and self.only_moved):
            return False
        taken = any(not isinstance(results[n], Shadow) for n in node.all_input_nodes)
        hidden = taken or node.op == "call_module" or any(True for _ in find_literals((node.args, node.kwargs)))
        return not (self.counts and hidden)

    def note_number(self, node: fx.Node, results: dict[fx.Node, Any]) -> None:
        """Note which channels a number counts, and whether it follows from numbers of channels alone."""
        if self.is_width(node, results):
            self.widths.add(node)
        counted = [ids for n in node.all_input_nodes for ids in self.counted.get(n, ())]
        name = getattr(node.target, "__name__", node.target)
        if name in ("numel", "nelement"):
            sizes = [n for n in node.all_input_nodes if not isinstance(results[n], Shadow)]  # of a shape
            counted += [t for n in node.all_input_nodes if n not in sizes for t in results[n].ids]
            counted += [t for n in sizes for ids in ids_counted(n, results) for t in ids]
        elif node in self.widths and not counted:
            measured = find_measured(node, results)
            counted += [] if measured is None else list(results[measured[0]].ids)
        self.counted[node] = counted

    def pin_counted(self, output: fx.Node, results: dict[fx.Node, Any]) -> None:
        """Pin the channels that an output of the model counts, as `x.shape` does."""
        for number in output.all_input_nodes:
            counted = self.counted.get(number, [])
            if isinstance(results[number], tuple) and all(type(size) is int for size in results[number]):
                counted = [t for ids in ids_counted(number, results) for t in ids]
            for ids in counted:
                self.table.pin(ids, "an output of the model says how many there are")

    def is_width(self, node: fx.Node, results: dict[fx.Node, Any]) -> bool:
        """Whether a number is a tensor's number of channels, or computed from such numbers only."""
        source = node.args[0] if node.args else None
        tensor = results[source] if isinstance(source, fx.Node) else None
        if node.target in ("numel", "nelement", torch.numel) and isinstance(tensor, Shadow):
            return all(self.counts_channels(tensor, d) for d in range(len(tensor.shape)))
        measured = find_measured(node, results)
        if measured is not None:
            return measured in self.fixed or self.counts_channels(results[measured[0]], measured[1])
        return bool(node.all_input_nodes) and self.widths.issuperset(node.all_input_nodes)

    def note_fixed(self, guard: fx.Node, results: dict[fx.Node, Any]) -> None:
        """Note the size that a guard holds to a literal: `x.shape[2] != 32`, which has to be False."""
        question, answer = guard.args[:2]
        if not isinstance(question, fx.Node) or (question.target, answer) not in EQUAL:
            return
        number, literal = (*question.args, None)[:2]
        if not isinstance(number, fx.Node) or type(literal) is not int:
            return
        measured = find_measured(number, results)
        if measured is not None:
            self.fixed.add(measured)
            self.widths.add(number)

    def counts_channels(self, tensor: Shadow, dim: int) -> bool:
        """Whether a dimension is one of channels alone; heads that are folded into the batch are not."""
        if dim == 0 and tensor.layout is not None:  # of what is computed of an input, where the batch lies
            return False
        for t in tensor.ids:
            line = t.movedim(dim, 0).reshape(t.size(dim), -1)[:, 0]
            alone = varying(t) == [dim] or (t.size(dim) > 1 and len(line.unique()) == len(line))
            low, high = int(line.min()), int(line.max())
            if alone and any(start <= low <= end or start <= high <= end for start, end in self.own_ids):
                return True
        return False

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Let composite layers arrive as their parts, and leave the random state alone."""
        with plain_attention(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            yield

    def run_or_explain(self, node: fx.Node, env: dict[fx.Node, Any], inputs: Iterator[Any]) -> Any:
        """Run one node on shadows; say where that is impossible."""
        try:
            return self.run_node(node, env, inputs)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise TraceError(
                f"{node.meta.get('where', node.name)}: {node.name} cannot be followed without values, most likely "
                f"because the shape of its result depends on them ({str(error).splitlines()[0]}); write it with shapes "
                "that do not (torch.where, a mask), or keep it out of the model that is prepared"
            ) from error

    def run_node(self, node: fx.Node, env: dict[fx.Node, Any], inputs: Iterator[Any]) -> Any:
        """Run one node on shadows."""
        args = fx.node.map_arg(node.args, lambda n: env[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n])
        if node.op == "placeholder":
            return next(inputs)
        others = [n for n in node.all_input_nodes if not is_shadow(env[n])]
        self.is_inside = len(others) < len(node.all_input_nodes)
        numbers = [n for n in others if any(type(leaf) in (int, float) for leaf in tree_leaves(env[n]))]
        self.sized = not self.widths.issuperset(numbers)
        self.mixed = [ids for n in numbers if n not in self.widths for ids in self.counted.get(n, ())]
        if node.op == "output":
            for leaf in tensors_in(args):
                self.table.pin(leaf.ids, "an output of the model")
            return args[0]
        if node.target is check_failure:
            for leaf in filter(is_shadow, tree_leaves(args)):
                self.table.pin(leaf.ids, "the code asks whether an op fails")
            return None
        if node.op == "call_module" and hides_layers(find_module(self.model, str(node.target))):
            return self.run_opaque(find_module(self.model, str(node.target)), args, kwargs)
        if node.op == "get_attr":
            return self.find_shadow(str(node.target))
        with self.mode:  # only here: the rules' own tensors are ordinary ones
            result = run_code(node, args, kwargs, self.model)
        return self.mode.wrap(result) if isinstance(result, Tensor) else result

    def find_shadow(self, name: str) -> ShadowTensor:
        """The shadow of a parameter; what a parametrization computes is a parameter of its own."""
        if name not in self.computed:
            tensor = find_tensor(self.model, name)
            if id(tensor) not in self.mode.memo:
                self.add_parameter(name, tensor)
            self.computed[name] = tensor
        shadow = self.mode.wrap(self.computed[name])
        shadow.source = name
        self.table.parameters[name] = shadow.ids
        return shadow

    def run_opaque(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module that hides several layers for its shapes alone, and pin what it reads."""
        state = {name: t.to("meta") for name, t in [*module.named_parameters(), *module.named_buffers()]}
        shapes = tree_map(lambda t: t.held.to("meta") if is_shadow(t) else t, (args, kwargs))
        with FlopCounterMode(display=False) as counter:
            result = functional_call(module, state, *shapes)
        assert self.table.node is not None
        self.table.products.append(Product(self.table.node, counter.get_total_flops() // 2, None, ()))
        for leaf in filter(is_shadow, [*map(self.mode.wrap, module.parameters()), *tree_leaves((args, kwargs))]):
            self.table.pin(leaf.ids, f"{type(module).__name__} is one step that hides several layers")
        return tree_map_only(Tensor, ShadowTensor, result)


def run_code(node: fx.Node, args: Any, kwargs: Any, model: nn.Module) -> Any:
    """Run the code that a node stands for."""
    if node.op == "get_attr":
        return find_tensor(model, str(node.target))
    if node.op == "call_module":
        return find_module(model, str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    follow = FOLLOWED.get(node.target)  # type: ignore[arg-type]
    if follow is not None and any(is_shadow(leaf) and not leaf.is_real for leaf in tree_leaves(args)):
        return follow(*args, **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def hides_layers(module: nn.Module) -> bool:
    """Whether a primitive's channels cannot be cut from outside: attention, recurrent cells, transformers."""
    if hasattr(module, "parametrizations"):
        return False
    return any(True for _ in module.children()) or not set(dict(module.named_parameters())) <= {"weight", "bias"}


def ids_counted(shape: fx.Node, results: dict[fx.Node, Any]) -> list[Ids]:
    """For each number of `x.shape`, or of a slice of it, the ids that it counts."""
    source = shape.args[0]
    assert isinstance(source, fx.Node)
    tensor = results[source]
    if not isinstance(tensor, Shadow):
        counted = ids_counted(source, results)
        return counted[shape.args[1]] if isinstance(shape.args[1], slice) else counted
    return [tuple(t for t in tensor.ids if dim in varying(t)) for dim in range(len(tensor.shape))]


def find_measured(node: fx.Node, results: dict[fx.Node, Any]) -> tuple[fx.Node, int] | None:
    """The tensor and the dimension whose size a number is: `x.size(1)`, `x.shape[1]`, `x.shape[1:][0]`."""
    source, dim = (*node.args, None, None)[:2]
    if not isinstance(source, fx.Node) or not isinstance(dim, int):
        return None
    if node.target is operator.getitem and isinstance(results[source], tuple) and -len(results[source]) <= dim:
        source, dims = find_slice(source, results)
        if source is None or dim >= len(dims):
            return None
        dim = dims[dim]
    tensor = results[source]
    return (source, dim % len(tensor.shape)) if isinstance(tensor, Shadow) and tensor.shape else None


def find_slice(shape: fx.Node, results: dict[fx.Node, Any]) -> tuple[fx.Node | None, Sequence[int]]:
    """The tensor and the dimensions whose sizes a tuple holds: `x.shape`, or a slice of it by plain numbers."""
    source, key = (*shape.args, None, None)[:2]
    if not isinstance(source, fx.Node):
        return None, ()
    if isinstance(results[source], Shadow):
        return (source, range(len(results[source].shape))) if key in (None, "shape") else (None, ())
    if isinstance(key, slice) and not any(isinstance(bound, fx.Node) for bound in (key.start, key.stop, key.step)):
        tensor, dims = find_slice(source, results)
        return tensor, dims[key]
    return None, ()


def varies_by_channel(constant: Constant, ids: Ids) -> bool:
    """Whether a constant differs between channels only, so that it is the same at every size."""
    channels = {d for t in ids for d in varying(t)}
    return all(d in channels for part in constant for d in varying(part))


def is_channel(ids: Tensor) -> bool:
    """Whether ids say more than "not a channel" throughout, which is what their absence says."""
    return ids.numel() != 1 or int(ids) != PINNED


def is_uneven(t: Tensor) -> bool:
    """Whether a tensor has values that differ, such as `arange`."""
    return t.device.type != "meta" and t.numel() > 1 and bool((t != t.reshape(-1)[0]).any())


def is_shadow(value: Any) -> bool:
    return type(value) is ShadowTensor


def find_written(node: fx.Node) -> fx.Node | None:
    """The tensor to which a node writes in place, as its name says (`add_`, `setitem`, `+=`): its first argument."""
    name = str(getattr(node.target, "__name__", node.target))
    written = node.args[0] if node.args else None
    if not isinstance(written, fx.Node) or node.op not in ("call_function", "call_method"):
        return None
    inplace_operator = name in ("setitem", "iadd", "isub", "imul", "itruediv", "iand", "ior", "imatmul", "ipow")
    return written if inplace_operator or (name.endswith("_") and not name.endswith("__")) else None


def freeze(value: Any) -> Any:
    """Keep what is known of a node's result, without the tensor."""
    if is_shadow(value):
        return freeze_tensor(value)
    if isinstance(value, PackedSequence):  # makes no other of what is no tensor
        return tuple(map(freeze, value))
    return tree_map(lambda t: t if t is value else freeze(t), value, is_leaf=lambda t: isinstance(t, PackedSequence))


def freeze_tensor(t: ShadowTensor) -> Shadow:
    return Shadow(tuple(t.shape), t.ids, t.constant, t.made, None if t.is_real else t.held)


def find_last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node, what nobody needs after it."""
    seen: set[fx.Node] = set()
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        for used in (*node.all_input_nodes, node):
            if used not in seen:
                seen.add(used)
                last.setdefault(node, []).append(used)
    return last


def bind_shadows(graph: fx.Graph, inputs: Inputs) -> Iterator[Any]:
    """Go through shadows of the inputs, as the graph's placeholders stand."""
    return iter(tree_map_only(Tensor, lambda t: ShadowTensor(t.to("meta")), bind_inputs(graph, inputs)))
