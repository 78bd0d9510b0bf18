"""What records a model's code while it runs: a tracer whose proxies carry the values of an example.

It stops at the primitives of `torch.nn`; and a mode records torch's functions that see no proxy.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fxprune.arguments import SETTINGS, TEXTS
from fxprune.errors import TraceError
from fxprune.find_module import find_module
from fxprune.model import Inputs, in_eval_mode
from fxprune.passes.guards import FAILURES, check_failure, check_guard
from fxprune.passes.objects import holds_proxies, remake
from fxprune.passes.proxies import (
    LENGTH,
    NumberType,
    ValueProxy,
    find_proxies,
    is_accessor,
    record_torch_function,
    unwrap,
)
from fxprune.passes.source_lines import find_user_line

ASSERT = torch._assert
"""Torch's own, also while code is traced, for which another stands."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

DTYPES = {float: torch.float64, int: torch.int64, bool: torch.bool, complex: torch.complex128}
"""What Python's types of numbers mean to torch, as in `x.to(float)`."""

PICKS = (operator.getitem, getattr, "get")
"""What takes a part of an input that may be None, or a text."""

RANDOM = frozenset({
    "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal", "poisson", "rand",
    "rand_like", "randint", "randint_like", "randn", "randn_like", "random", "randperm", "uniform",
})  # fmt: skip
"""What draws numbers: code that decides by these has no one graph."""

_READS_DATA = frozenset({"item", "tolist", "__bool__", "__int__", "__float__", "equal", "allclose", "is_nonzero"})


@dataclasses.dataclass
class Asked:
    """What code asks that is traced."""

    modes: list[nn.Module] = dataclasses.field(default_factory=list)  # for their `self.training`
    rank: bool = False  # how many dimensions a tensor has
    numbers: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # the globals of what asks for plain ones


class ValueTracer(fx.Tracer):
    """Trace with values; inline every module but the primitives of `torch.nn`."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: Inputs, earlier: dict[str, tuple[fx.Node, Any]]) -> None:
        super().__init__()
        self.inputs, self.earlier = inputs, earlier
        self.same: set[fx.Node] = set()  # nodes that the other mode has, too
        self.guarded: set[fx.Node] = set()
        self.recording = False
        self.texts: list[tuple[str, fx.Node]] = []  # what the code made of sizes, and the guards
        self.asked = Asked()
        self.proxies: list[weakref.ref[ValueProxy]] = []  # all that were made
        self.failed = False  # whether an op did
        self.failures: list[str] = []  # lines of ops that failed, for which the graph has no check
        self.opaque: tuple[str, set[int]] | None = None  # the step that hides what it computes, and what it is given

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Make a placeholder for each example input; arguments that were not given keep their defaults."""
        signature = inspect.signature(root_fn)
        args, kwargs = self.inputs
        bound = signature.bind(self.root, *args, **kwargs)
        self.defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
        self.names = {id(p): n for n, p in [*self.root.named_parameters(), *self.root.named_buffers()]}
        positional: list[Any] = []
        kinds, gap = inspect.Parameter, False
        for name, parameter in list(signature.parameters.items())[1:]:
            if name not in bound.arguments:
                gap = True
                continue
            value = bound.arguments[name]
            if parameter.kind is kinds.VAR_POSITIONAL:
                positional += [self.placeholder(f"{name}_{i}", v) for i, v in enumerate(value)]
            elif parameter.kind is kinds.VAR_KEYWORD:
                root_fn = functools.partial(root_fn, **{k: self.placeholder(k, v) for k, v in value.items()})
            elif parameter.kind is kinds.KEYWORD_ONLY or gap:
                root_fn = functools.partial(root_fn, **{name: self.placeholder(name, value)})
            else:
                positional.append(self.placeholder(name, value))
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        for node in itertools.dropwhile(lambda node: not node.args, inputs):
            node.args = node.args or (None,)  # Python wants defaults for all that follow
        self.recording = True
        return root_fn, [self.root, *positional]

    def placeholder(self, name: str, value: Any) -> Any:
        """Make the node of one input; numbers stay symbolic, None is None, plain defaults stay."""
        default = self.defaults.get(name, inspect.Parameter.empty)
        plain = default is None or type(default) in (bool, int, float, str)
        is_fixed = value is None or isinstance(value, SETTINGS)
        node = self.create_node("placeholder", name, (default if plain else None,) if plain or is_fixed else (), {})
        node.meta["where"] = "an input of the model"
        if is_fixed:
            return value
        return ValueProxy(node, self, value, not isinstance(value, (int, float, str)))

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Any | None = None,
    ) -> Any:
        """Record a node, run it on the example values, and return a proxy of the result (None stays None)."""
        if not self.recording and self.opaque is not None:
            raise self.hidden("a value that is computed outside of it")
        if target is ASSERT:  # called by a name of its own, not as torch._assert
            self.forgive((*args, *kwargs.values())[-1])
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), name, type_expr)
        node.meta["where"] = find_user_line()
        if kind == "call_module":
            node.meta["where"] = f"layer {target}, {node.meta['where']}"
        data = any(proxy._data for proxy in find_proxies((args, kwargs))) or is_random(target)
        if data and target in ("item", "tolist", "numpy"):
            raise TraceError(
                f"{find_user_line()}: {target}() lets the code go on by the values of a tensor, so no one graph "
                "computes this model; compute with tensors, or keep this code out of the model that is prepared"
            )
        value = self.reuse(node, data)
        if value is None:
            try:
                value = self.run(kind, target, unwrap(args), unwrap(kwargs))
            except Exception as failure:
                self.failed = True
                if isinstance(failure, FAILURES):  # the code may catch it, and take another way
                    self.expect_failure(node)
                raise
        if isinstance(value, Tensor):
            node.meta["shape"] = tuple(value.shape)
        if not isinstance(value, Tensor):  # a shape tells nothing of the contents; a number read from them does
            numbers = any(p._data for p in find_proxies((args, kwargs)) if not isinstance(p._value, Tensor))
            data = (numbers and target not in (LENGTH, tuple)) or (
                data and getattr(target, "__name__", target) in _READS_DATA
            )
        self.earlier[node.name] = (node, value)
        if value is not None and not isinstance(value, TEXTS):
            return ValueProxy(node, self, value, data)
        if target in PICKS and not isinstance(unwrap(args[0]), (Tensor, torch.device)):
            self.create_guard(node, value)  # the code may ask whether it is there, and which
            return value
        return None if value is None else ValueProxy(node, self, value, data)

    def expect_failure(self, node: fx.Node) -> None:
        """Put a check in the place of a node that fails: where it does not, the code takes another way."""
        where = node.meta["where"]
        if node.op == "call_method":
            check = self.create_node("call_function", check_failure, (str(node.target), where, *node.args), node.kwargs)
            check.meta["where"] = where
        else:
            self.failures.append(where)
        self.graph.erase_node(node)

    def reuse(self, node: fx.Node, data: bool) -> Any:
        """The value of the same node in the other mode: where it depends on an input, only its shape is looked at."""
        twin, value = self.earlier.get(node.name, (node, None))
        same = (twin.op, twin.target, str(twin.args), str(twin.kwargs)) == (
            node.op, node.target, str(node.args), str(node.kwargs),
        )  # fmt: skip
        if not same or not all(n in self.same or n.op == "placeholder" for n in node.all_input_nodes):
            return None
        self.same.add(node)
        return value if data and isinstance(value, Tensor) else None

    def run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Compute a node on values, with the tracer out of the way; modules run in eval mode, states unharmed."""
        with self.untraced(), torch.no_grad():
            if kind == "get_attr":
                return operator.attrgetter(target)(self.root)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            if kind == "call_function":
                return target(*args, **kwargs)
            with in_eval_mode(find_module(self.root, target)) as module:
                return module(*args, **kwargs)

    def record_opaque(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a call of a function into which the graph cannot look: it may use its arguments alone."""

        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        call.__name__ = call.__qualname__ = name
        self.opaque = name, {id(leaf) for leaf in tree_leaves(unwrap((args, kwargs)))}
        try:
            return self.create_proxy("call_function", call, args, kwargs)
        finally:
            self.opaque = None

    def check_hidden(self, args: Any, kwargs: Any) -> None:
        """Refuse an opaque step that reads a parameter of the model by itself, which the graph would not know."""
        name, given = self.opaque or ("", set())
        for leaf in tree_leaves((args, kwargs)) if name else ():
            if id(leaf) in self.names and id(leaf) not in given:
                raise self.hidden(self.names[id(leaf)])

    def hidden(self, what: str) -> TraceError:
        assert self.opaque is not None
        return TraceError(
            f"{find_user_line()}: {self.opaque[0]} uses {what}, which the graph cannot see; pass it as an argument"
        )

    @contextmanager
    def untraced(self) -> Iterator[None]:
        """Run code without recording it."""
        self.recording = False
        try:
            yield
        finally:
            self.recording = True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Turn each access to a parameter or buffer into one `get_attr` node."""
        if not self.recording or not isinstance(attr_val, Tensor) or id(attr_val) not in self.names:
            return attr_val
        name = self.names[id(attr_val)]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not self.recording:
            return forward(*args, **kwargs)
        try:
            name = self.path_of_module(m)
        except NameError:  # made by the code that runs, as `nn.ReLU()(x)`
            return forward(*args, **kwargs)
        if isinstance(m, OptimizedModule):  # of torch.compile: what it holds is the module itself
            return m._orig_mod(*args, **kwargs)
        if isinstance(m, parametrize.ParametrizationList):  # what it computes is a parameter like any other
            return self.create_proxy("get_attr", f".{name}".replace(".parametrizations.", ".").strip("."), (), {})
        if not self.is_leaf_module(m, name):
            return forward(*args, **kwargs)
        return self.create_proxy("call_module", name, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at primitives of `torch.nn`, and at what is scripted; what holds other modules is looked into."""
        if isinstance(m, torch.jit.ScriptModule):
            return True
        if any(True for _ in find_proxies(dict(m._parameters))):
            return False  # another value stands for it during this call
        parts = [name for name, _ in m.named_children() if name != "parametrizations"]
        if "forward" in vars(m):
            return False  # its owner's own code runs in the place of the layer's
        return m.__module__.startswith("torch.nn.") and not parts and not isinstance(m, CONTAINERS)

    def create_arg(self, a: Any) -> Any:
        kind = type(a)  # not isinstance: a proxy answers as its value does
        if kind is ValueProxy:
            return a.node
        if kind in (type, NumberType) and a in DTYPES:
            return DTYPES[a]
        if kind in (tuple, list):
            return kind(self.create_arg(x) for x in a)
        if kind is dict:
            return {key: self.create_arg(x) for key, x in a.items()}
        if isinstance(a, dict):  # an OrderedDict, or a class of outputs that is both a dict and a dataclass
            return self.rebuild(a)
        if kind is slice:
            return slice(self.create_arg(a.start), self.create_arg(a.stop), self.create_arg(a.step))
        if isinstance(a, nn.Parameter) and id(a) not in self.names:
            raise TraceError(
                f"{find_user_line()}: the code uses a parameter that is none of this model's: fxprune works on a copy, "
                "and a function from before, such as a bound method, knows the original; define it in a class"
            )
        if isinstance(a, torch.Generator):
            raise TraceError(
                f"{find_user_line()}: the code draws by a generator of its own, which no graph can hold; draw by "
                "torch's (generator=None), or keep it out of the model that is prepared"
            )
        if not isinstance(a, tuple) and not dataclasses.is_dataclass(a) and holds_proxies(a):
            return self.rebuild_object(a)
        return super().create_arg(a)

    def rebuild(self, a: dict[Any, Any]) -> fx.Node:
        """Make a node that makes such a mapping again."""
        items = {key: self.create_arg(value) for key, value in a.items()}
        if dataclasses.is_dataclass(type(a)):
            return self.create_node("call_function", type(a), (), items)
        return self.create_node("call_function", type(a), (items,), {})

    def rebuild_object(self, a: Any) -> fx.Node:
        """Make a node that makes such an object again, of its class and with its attributes, as a cache of keys."""
        make, traced = remake(a)
        return self.create_node("call_function", make, (), {name: self.create_arg(v) for name, v in traced.items()})

    def guard(self, proxy: ValueProxy) -> Any:
        """Return the value of a proxy, which the Python code needs, and note that the graph depends on it."""
        value = proxy._value.item() if isinstance(proxy._value, Tensor) and not proxy._data else proxy._value
        if proxy._data:
            raise TraceError(
                f"{find_user_line()}: the code decides by the values of a tensor ({proxy.node.name}), or by chance, so "
                "no one graph computes this model; write the choice with torch.where, or keep it out of the model that "
                "is prepared"
            )
        if proxy.node not in self.guarded:
            self.guarded.add(proxy.node)
            self.create_guard(proxy.node, value)
        return value

    def create_guard(self, asked: fx.Node, value: Any) -> fx.Node:
        """Let the graph raise where the value of a node is another."""
        where = find_user_line()
        node = self.create_node("call_function", check_guard, (asked, value, where), {})
        node.meta["where"] = where
        return node

    def guard_text(self, proxy: ValueProxy, text: str) -> None:
        """Note that the code makes a text of a size, which may be the name of a table, or a message."""
        if self.recording and proxy.node not in self.guarded:
            self.texts.append((text, self.create_guard(proxy.node, proxy._value)))

    def forgive(self, message: Any) -> None:
        """Let sizes be any that the code has written into a message, on which nothing depends."""
        said = [each for each in self.texts if isinstance(message, str) and each[0] in message]
        for each in said:
            self.texts.remove(each)
            self.graph.erase_node(each[1])


class TraceMode(TorchFunctionMode):
    """Record torch functions that see no proxy among tensors (`torch.zeros(n)`), so that nothing is frozen."""

    def __init__(self, tracer: ValueTracer) -> None:
        super().__init__()
        self.tracer = tracer
        self.entered: list[tuple[bool, fx.Node]] = []  # the modes before each switch, and the nodes that read them

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.tracer.recording:
            self.tracer.check_hidden(args, kwargs)
            return func(*args, **kwargs)
        if any(True for _ in find_proxies((args, kwargs))):
            return record_torch_function(self.tracer, func, args, kwargs)
        if func is torch._C._set_grad_enabled:
            return self.switch_gradients(bool(args[0]))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not is_accessor(func):
            node = self.tracer.create_node(
                "call_function", func, self.tracer.create_arg(args), self.tracer.create_arg(kwargs)
            )
            node.meta["where"] = find_user_line()
            return ValueProxy(node, self.tracer, result, is_random(func))
        return result

    def switch_gradients(self, enabled: bool) -> None:
        """Record `torch.no_grad()` and its kin: on leaving, the caller's own mode comes back, whatever it is then."""
        entered = self.entered.pop() if self.entered else None
        if entered is not None and entered[0] == enabled:
            argument: Any = entered[1]
        else:
            self.entered += [] if entered is None else [entered]
            before = self.tracer.create_node("call_function", torch.is_grad_enabled, (), {})
            self.entered.append((torch.is_grad_enabled(), before))
            argument = enabled
        self.tracer.create_node("call_function", torch._C._set_grad_enabled, (argument,), {})
        torch._C._set_grad_enabled(enabled)


fx.node.has_side_effect(torch._C._set_grad_enabled)


def is_random(target: Any) -> bool:
    """Whether a function or method gives something else each time."""
    return str(getattr(target, "__name__", target)).strip("_") in RANDOM
