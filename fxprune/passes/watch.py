"""How the modules of a model are used while its own code runs: their calls, and who reads their parameters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fxprune.errors import TraceError
from fxprune.model import Inputs, TracedModel, in_eval_mode, named_tensors, tensors_in
from fxprune.passes.proxies import is_accessor
from fxprune.passes.source_lines import find_user_line

MOST_CALLS = 8
"""How many calls of a module, of different shapes, a graph is tried on."""

KINDS = frozenset(
    {"dtype", "device", "layout", "is_cuda", "requires_grad", "is_floating_point", "is_complex", "dim", "ndim"}
)
"""What code may ask of a tensor from anywhere: none of it changes when channels go."""


@dataclass
class Calls:
    """How one module was called while the whole model ran."""

    inputs: list[Inputs] = field(default_factory=list)
    shapes: list[Any] = field(default_factory=list)
    held: list[list[torch.Size]] = field(default_factory=list)  # what the inputs held, objects' attributes included
    called_outside: set[str] = field(default_factory=set)  # modules inside that are called while it is not running
    has_hooks: bool = False  # of its owner's, or of its code's, which may add some when it runs
    read_outside: dict[str, str] = field(default_factory=dict)  # tensors inside that other code reads, and its line


def watch_calls(root: nn.Module, inputs: Inputs) -> dict[str, Calls]:
    """Run a model in eval mode, and note how each of its modules is used; raises TraceError if it does not run."""
    calls = {name: Calls() for name, _ in root.named_modules()}
    active: list[str] = []
    handles = []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            for owner in set(find_owners(name)).difference(active):
                calls[owner].called_outside.add(name)
            active.append(name)
            note_call(calls[name], (args, kwargs))

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        active.pop()

    for name, module in root.named_modules():
        if name and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
            handles.append(module.register_forward_pre_hook(enter(name), prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), in_eval_mode(root), kept_state(root):
            args, kwargs = tree_map_only(Tensor, torch.clone, inputs)
            with ReadWatch(root, calls, active):
                root(*args, **kwargs)
            for name, module in root.named_modules():
                own = 2 if name else 0  # of `enter` and `leave`
                calls[name].has_hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) > own
    except Exception as error:
        raise TraceError(f"{type(root).__name__} does not run on the example inputs: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


class ReadWatch(TorchFunctionMode):
    """Note where code reads a parameter or buffer while a module that holds it is not running."""

    def __init__(self, root: nn.Module, calls: dict[str, Calls], active: list[str]) -> None:
        super().__init__()
        self.calls, self.active = calls, active
        self.holders: dict[int, dict[str, list[str]]] = {}  # for each tensor, by its names, the modules around it
        for name, tensor in named_tensors(root):
            self.holders.setdefault(id(tensor), {})[name] = list(find_owners(name))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (func.__self__ if is_accessor(func) else func).__name__ not in KINDS:
            for leaf in tree_leaves((args, kwargs)):
                self.note(self.holders.get(id(leaf), {}))
        return func(*args, **(kwargs or {}))

    def note(self, holders: dict[str, list[str]]) -> None:
        """Note a read for each module around the tensor that is not running; a tied one is read by a name at a time."""
        running = {name: paths for name, paths in holders.items() if not set(paths).isdisjoint(self.active)}
        for name, paths in (running or holders).items():
            for path in set(paths).difference(self.active):
                self.calls[path].read_outside.setdefault(name, find_user_line())


def find_owners(name: str) -> Iterator[str]:
    """Go through the modules around a parameter or module, from the innermost out, the whole model left aside."""
    while name := name.rpartition(".")[0]:
        yield name


def note_call(calls: Calls, inputs: Inputs) -> None:
    """Keep the inputs of a call, unless some of the same shapes are kept."""
    shapes = tree_map_only(Tensor, lambda t: (t.shape, t.dtype), inputs)
    try:
        if shapes in calls.shapes or len(calls.shapes) >= MOST_CALLS:
            return
    except RuntimeError:  # objects that cannot be compared
        return
    calls.shapes.append(shapes)
    calls.inputs.append(tree_map_only(Tensor, lambda t: t.detach().clone(), inputs))
    calls.held.append(sizes_in(inputs))


def sizes_in(inputs: Inputs) -> list[torch.Size]:
    """List the shapes of all tensors of a call, those that objects hold as attributes included."""
    return [t.shape for t in tensors_in(inputs)]


@contextmanager
def kept_state(root: nn.Module) -> Iterator[None]:
    """Put buffers back, and all that code leaves in attributes, or in the dictionaries and lists that they hold.

    Hooks are among these: code that adds some once, and notes that in an attribute, would add them again. Modules that
    code adds stay.
    """
    buffers = {name: buffer.clone() for name, buffer in root.named_buffers()}
    parts = [part for part in root.modules() if not isinstance(part, torch.jit.ScriptModule)]
    callers = [part.user for part in parts if isinstance(part, TracedModel)]  # of regions
    parts += [caller for caller in callers if caller is not None]
    attributes = [(part, dict(vars(part))) for part in parts]
    held = [each for _, own in attributes for name, each in own.items() if name != "_modules"]
    contents = [(each, each.copy()) for each in held if type(each) in (dict, OrderedDict, list, set)]
    try:
        yield
    finally:
        for part, own in attributes:
            vars(part).clear()
            vars(part).update(own)
        for each, before in contents:
            each.clear()
            each.extend(before) if isinstance(each, list) else each.update(before)
        with torch.no_grad():
            for name, buffer in root.named_buffers():
                if name in buffers and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])  # and no other: a backward pass may wait for it
