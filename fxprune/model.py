"""What a traced model is: the user's own modules and parameters, and one graph for each mode."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxprune.arguments import Arguments
from fxprune.compile_graph import GraphCode, compile_graph, copy_graph, describe
from fxprune.conversion_report import Report
from fxprune.copy_modules import deep_copy
from fxprune.errors import FxpruneError, StateError
from fxprune.explain import explain_failure, explain_misfit
from fxprune.find_module import find_module
from fxprune.latency_trial import LatencyTrial
from fxprune.masks import Masks
from fxprune.unseen import Settings, Unseen, read_settings, warn_of_changes

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call of the model."""


@dataclass
class Region:
    """One traced module: its graphs of the two modes, one and the same object where the modes do not differ.

    The graphs name modules and parameters as the whole model does. `path` is the module's name, "" for the
    whole model; `inputs` are those with which it was traced.
    """

    path: str
    train: fx.Graph
    eval: fx.Graph
    inputs: Inputs
    arguments: Arguments
    asking: tuple[str, ...] = ()  # the modules inside whose code asks for their mode

    def __iter__(self) -> Iterator[fx.Graph]:
        yield self.eval
        if self.train is not self.eval:
            yield self.train


@dataclass(frozen=True)
class Rewrite:
    """What was done to a model, by names instead of by nodes, so that it can be done again on a fresh one.

    `tensors` are the parameters and persistent buffers before it.
    """

    class_name: str
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Step(Rewrite):
    """What one conversion did.

    What went is in `kept`: which indexes of which dimension of which tensor stay. The rest are rewrites at nodes, each
    with the number of its graph.
    """

    inputs: Inputs  # of the whole model
    traced: dict[str, Inputs]  # the regions by their paths, and the inputs with which they were traced,
    converted: dict[str, Inputs]  # and made smaller
    untraced: dict[str, str]
    masked: bool  # whether it was a prepared model
    whole_heads: bool
    kept: dict[str, dict[int, list[int]]]
    biased: tuple[tuple[int, str], ...]  # nodes into whose bias constants went
    constants: tuple[tuple[int, str, tuple[int, ...]], ...]  # nodes that always give the same, and its shape
    muted: tuple[tuple[int, str], ...]  # numbers among mixes and readers, and nodes


@dataclass
class Graphs:
    """The graphs of a model: of the whole, or of each region where the whole cannot be traced."""

    regions: list[Region]

    def __iter__(self) -> Iterator[fx.Graph]:
        for region in self.regions:
            yield from region

    def of(self, graph: fx.Graph) -> Region:
        """The region to which a graph belongs."""
        return next(region for region in self.regions if graph is region.eval or graph is region.train)

    def map(self, rewrite: Callable[[fx.Graph], fx.Graph]) -> Graphs:
        """Rewrite all graphs; what is shared stays shared."""
        regions = []
        for region in self.regions:
            evaluated = rewrite(region.eval)
            train = evaluated if region.train is region.eval else rewrite(region.train)
            regions.append(replace(region, train=train, eval=evaluated))
        return Graphs(regions)

    def pair_nodes(self, others: Graphs) -> dict[fx.Node, fx.Node]:
        """For each node, its copy in `others`, which have the same nodes in the same order."""
        graphs = zip(self, others, strict=True)
        return {mine: its for a, b in graphs for mine, its in zip(a.nodes, b.nodes, strict=True)}

    def copy(self) -> Graphs:
        """Copy the nodes of all graphs, under their names."""
        return self.map(copy_graph)


RESERVED = frozenset({
    "class_name", "compile_graphs", "copy_shell", "forward_signature", "fxprune", "graphs", "inputs", "latency",
    "lowered", "pinned", "plain", "report", "root_settings", "runs", "set_graphs", "steps", "switch", "untraced",
    "user", "whole_heads",
})  # fmt: skip
"""The attributes of traced, prepared and converted models, whose names the parts of a user's model cannot have."""


HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip
"""Where a module holds who listens to its calls."""


class TracedModel(nn.Module):
    """The user's modules under their own names, run by a graph instead of by their Python code.

    `forward` runs the graph of the current mode (`self.training`). Submodules, parameter names and
    the state dict are those of the original; a `train()` or `eval()` sets them as usual. `inputs` are the
    example inputs with which the model was traced; `steps` are the rewrites behind it, the first one first.

    Where the whole could not be traced, `user` is the module whose own code runs, with its regions swapped in
    place, and `untraced` says what stayed outside of them and why. `switch` is the user's module where its class has a
    `train` of its own, such as one that keeps batch norms in eval mode. `lowered`, where stripes were, is that step.
    """

    lowered: Rewrite
    report: Report
    root_settings: Settings

    def __init__(
        self, root: nn.Module, graphs: Graphs, class_name: str | None = None, inputs: Inputs = ((), {}),
        untraced: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inputs = inputs
        self.untraced = untraced or {}
        self._modules = root._modules
        self._parameters = root._parameters
        self._buffers = root._buffers
        self._non_persistent_buffers_set = root._non_persistent_buffers_set
        self.training = root.training
        for name in HOOKS:  # of the model's own call, which is no part of a graph
            vars(self)[name] = vars(root)[name]
        self.class_name = class_name or (root._get_name() if isinstance(root, TracedModel) else type(root).__name__)
        self.steps: tuple[Rewrite, ...] = root.steps if isinstance(root, TracedModel) else ()
        user = getattr(root, "user", root) if isinstance(root, TracedModel) else root
        self.root_settings = root.root_settings if isinstance(root, TracedModel) else read_settings(root)
        self.user: nn.Module | None
        vars(self)["user"] = None if [region.path for region in graphs.regions] == [""] else user
        self.switch: nn.Module | None
        own = root if type(root).train is not nn.Module.train else None
        vars(self)["switch"] = root.switch if isinstance(root, TracedModel) else own
        for node in (node for graph in graphs for node in graph.nodes if node.op == "get_attr"):
            owner, _, leaf = str(node.target).rpartition(".")
            part = find_module(root, owner)
            if isinstance(vars(part).get(leaf), Tensor):  # plain attributes, and constants of the code
                value = vars(part).pop(leaf) if owner else vars(part)[leaf]
                find_module(self, owner).register_buffer(leaf, value, persistent=False)
        self.set_graphs(graphs)

    def set_graphs(self, graphs: Graphs) -> None:
        """Replace the graphs and compile them; what runs a region is put into its place."""
        self.graphs = graphs
        self.runs = [RegionForward(self, region) for region in graphs.regions]
        for region, run in zip(graphs.regions, self.runs, strict=True):
            if region.path:
                vars(find_module(self, region.path))["forward"] = run

    def compile_graphs(self) -> TracedModel:
        """Turn all graphs into functions now instead of in the first forward, which torch.compile may be reading."""
        for run in self.runs:
            run.compile()
        return self

    @property
    def forward_signature(self) -> inspect.Signature:
        """What `forward` takes, as the user's model named it."""
        return self.runs[0].region.arguments.signature if self.user is None else inspect.signature(self.user.forward)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.user is None:
            return self.runs[0].run(self, args, kwargs)
        self.user.training = self.training
        return self.user.forward(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as of every module; warns of attributes of the user's modules that were changed in vain."""
        for run in self.runs:
            if run.unseen is not None:
                run.unseen.warn_of_settings()
        if self.runs[0].unseen is not None:
            warn_of_changes("", self, self.root_settings)
        super().train(mode)
        if self.switch is not None:
            self.switch.train(mode)
            self.training = self.switch.training
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as every module does; raises StateError, a RuntimeError, where the state dict does not fit."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            if isinstance(error, FxpruneError) or not isinstance(state_dict, Mapping):
                raise
            own = {name: value for name, value in self.state_dict().items() if isinstance(value, Tensor)}
            fits = "of a conversion with the same gates (fxprune.save and fxprune.load keep a converted model)"
            if isinstance(self, PreparedModel):
                fits = "of the model that it was prepared from, or of one that was prepared in the same way"
            reason = explain_misfit(own, state_dict)
            raise StateError(
                f"this is no state dict of {self.class_name}: {reason or error}; give one {fits}"
            ) from error

    def _get_name(self) -> str:
        return self.class_name

    def copy_shell(self, memo: dict[int, Any]) -> nn.Module:
        """Copy modules, parameters and buffers, in the user's own module where its code runs."""
        own = self.switch if self.user is None else self.user
        if own is not None:
            shell: nn.Module = deep_copy(own, memo)
        else:
            shell = nn.Module()
            for part in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set", *HOOKS):
                setattr(shell, part, deep_copy(getattr(self, part), memo))
        shell.training = self.training
        return shell

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedModel:
        clone = memo[id(self)] = type(self).__new__(type(self))
        shell = self.copy_shell(memo)
        TracedModel.__init__(clone, shell, self.graphs.copy(), self.class_name, self.inputs, self.untraced)
        clone.steps, clone.root_settings = self.steps, dict(self.root_settings)
        added = {name: part for name, part in self._modules.items() if name not in clone._modules}
        if added:
            clone._modules = {**clone._modules, **deep_copy(added, memo)}
        if "plain" in vars(self):
            memo[id(self.plain)] = self.plain  # these graphs are never changed
        for name, value in vars(self).items():
            if name not in vars(clone) and name != "_compiled_call_impl":  # copies of modules are not compiled
                setattr(clone, name, deep_copy(value, memo))
        for own, its in zip(self.runs, clone.runs, strict=True):
            if own.codes:
                its.use(own.codes)
        return clone

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"{self.class_name}: a traced model cannot be pickled whole; save a prepared one's state_dict() and load "
            "it into a model prepared in the same way, and a converted one with fxprune.save(model, path)"
        )


class RegionForward:
    """The forward of one traced module: the graph of its mode, on the parameters of the whole model.

    That of a whole model does not keep it alive: a circle would hold its weights until Python looks for circles.
    """

    def __init__(self, model: TracedModel, region: Region) -> None:
        self.region, self.path = region, region.path
        self.held = model if region.path else None
        self.known = weakref.ref(model)
        self.codes: dict[bool, GraphCode] = {}  # of training and of evaluation, compiled when first called
        self.unseen: Unseen | None = None

    @property
    def model(self) -> TracedModel:
        """The model whose parameters the graph reads."""
        model = self.held or self.known()
        assert model is not None  # which calls this
        return model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.model, args, kwargs)

    def run(self, model: TracedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the graph of the mode on the model to which this belongs."""
        if not self.codes:
            self.compile()
        training = find_module(model, self.path).training if self.path else model.training
        code = self.codes[training]
        args, kwargs = self.region.arguments.fit(args, kwargs)
        if torch.compiler.is_compiling():
            return code.run(model, *args, **kwargs)
        if self.unseen is not None:
            self.unseen.warn_of_hooks()
            self.unseen.warn_of_modes(training)
        try:
            return code.run(model, *args, **kwargs)
        except Exception as error:
            error.add_note(explain_failure(error, self.region.train if training else self.region.eval, code.source))
            raise

    def compile(self, known: Mapping[bool, GraphCode] | None = None) -> None:
        """Turn the graphs into functions, which call what those of a model with the same nodes do that are `known`."""
        known, train = known or {}, self.region.train
        code = compile_graph(self.region.eval, self.model, known.get(False))
        shared = train is self.region.eval
        self.use({False: code, True: code if shared else compile_graph(train, self.model, known.get(True))})

    def use(self, codes: dict[bool, GraphCode]) -> None:
        """Take functions that are compiled already, by mode: those of a model are those of its copies, too."""
        self.codes = codes
        heard = codes[False].heard | codes[True].heard
        self.unseen = Unseen(find_module(self.model, self.path), self.path, heard, self.region.asking)

    def __deepcopy__(self, memo: dict[int, Any]) -> RegionForward:
        return self  # the copy of the whole model puts its own into this place


class PreparedModel(TracedModel):
    """A traced model with masks between its parameters and the ops that use them.

    `fxprune` holds the masks and their state, `plain` the graphs without them, `pinned` how many rows
    of weights cannot be pruned, by reason and line of the model's source. `whole_heads` says what of attention is one
    unit. `latency` lists the networks that were timed for a target in latency, what it follows last.
    """

    fxprune: Masks
    whole_heads: bool = True
    latency: tuple[LatencyTrial, ...] = ()

    def __init__(self, model: TracedModel, masks: Masks, pinned: dict[str, int]) -> None:
        super().__init__(model, model.graphs.copy(), model.class_name, model.inputs, model.untraced)
        self.plain = model.graphs
        self.pinned = pinned
        if self.user is not None:
            self._modules = dict(self._modules)  # of the user's own code, which may go through them, masks are no part
        self.fxprune = masks.train(model.training)
        masks.parts = find_parts(self)
        masks.described = {name: describe(part) for name, part in masks.parts.items()}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse the state of another method or target before anything is loaded; weights alone leave masks alone."""
        key = f"{prefix}fxprune._extra_state"
        if key in state_dict:
            self.fxprune.set_extra_state(state_dict[key])
        elif not any(name.startswith(f"{prefix}fxprune.") for name in state_dict):
            state_dict.update(self.fxprune.state_dict(prefix=f"{prefix}fxprune."))  # it is a copy
        super()._load_from_state_dict(state_dict, prefix, *args)


def find_parts(model: nn.Module) -> dict[str, nn.Module]:
    """List all modules but the model itself, under all their names; what parametrizes weights is left out.

    So is that which holds the masks and this list, which would be a circle.
    """
    modules = model.named_modules(remove_duplicate=False)
    inner = {name: module for name, module in modules if name not in ("", "fxprune")}
    return {name: module for name, module in inner.items() if "parametrizations" not in name.split(".")}


def tensors_in(value: Any) -> list[Any]:
    """List the tensors of a result, in order: of containers, dataclasses, and objects that hold them as attributes."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors_in(item)]
    if isinstance(value, (list, tuple, set)):
        return [t for item in value for t in tensors_in(item)]
    attributes = getattr(value, "__dict__", None)
    is_code = isinstance(value, (type, nn.Module)) or callable(value)
    return [] if attributes is None or is_code else tensors_in(dict(attributes))


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """List parameters and buffers under all their names."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def share_tensors(tensors: Iterable[Tensor]) -> dict[int, Any]:
    """Give the memo with which a deep copy has tensors of its own for these that hold the same memory."""
    memo: dict[int, Any] = {}
    for tensor in tensors:
        shared = tensor.detach()
        memo[id(tensor)] = nn.Parameter(shared, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shared
    return memo


def states_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers, under all their names, without fxprune's own of a prepared model."""
    states: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                states[f"{path}.{name}" if path else name] = buffer
    return {name: tensor for name, tensor in states.items() if not name.startswith("fxprune.")}


def describe_tensors(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The shapes and types of the parameters and persistent buffers."""
    return {name: (tuple(t.shape), t.dtype) for name, t in states_of(model).items()}


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer that a graph gets under this name; with a parametrization, what that computes."""
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = read_tensor(find_module(model, path), leaf)
    return tensor


def read_tensor(module: nn.Module, name: str) -> Any:
    """Read a tensor of a module as it is in eval mode; read in training, spectral norm goes on estimating."""
    if "parametrizations" not in module._modules:
        return getattr(module, name)
    with in_eval_mode(module):
        return getattr(module, name)


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Run a module in eval mode and put every mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for part, training in modes:
            part.training = training


def bind_inputs(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """Order the inputs as the graph's placeholders stand."""
    args, kwargs = inputs
    names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    positional = iter(args)
    return [kwargs[name] if name in kwargs else next(positional) for name in names]


def as_inputs(example_inputs: Any) -> Inputs:
    """Read example inputs: a tensor, a tuple of positional ones, or a dict of keyword ones.

    Raises FxpruneError for arrays that are no tensors, and for empty batches.
    """
    for leaf in tree_leaves(example_inputs):
        if type(leaf).__module__.partition(".")[0] == "numpy":
            raise FxpruneError(
                f"the example inputs hold a numpy.{type(leaf).__name__}: pass torch.from_numpy(...) of it"
            )
        if isinstance(leaf, Tensor) and leaf.dim() and not len(leaf):
            raise FxpruneError(
                f"the example inputs hold an empty batch, of shape {tuple(leaf.shape)}, of which nothing can be "
                "learnt: pass one of two samples, say"
            )
    if isinstance(example_inputs, dict):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    return (example_inputs,), {}


def as_example(inputs: Inputs) -> tuple[Any, ...] | dict[str, Any]:
    """Write inputs as the example inputs that they were read from."""
    args, kwargs = inputs
    return kwargs or args
