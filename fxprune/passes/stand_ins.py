"""What of torch is replaced while a model is traced, so that all that the model's code calls reaches the tracer."""

from __future__ import annotations

import builtins
import functools
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType
from typing import Any

import torch
import torch._dynamo  # whose tables hold torch's functions, and must not be made while others stand in for them
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch import apis
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.utils import checkpoint

from fxprune.passes.proxies import SymbolicSize, ValueProxy, answering_for_values, find_proxies, unwrap
from fxprune.run_alone import plain_attention

NAMESPACES = (torch, F, torch.fft, torch.linalg)
NUMBERS = ("finfo", "iinfo")
"""Where compiled functions are called: torch reads numbers among their arguments before any mode hears of the call."""

LOUD = ("debug", "info", "warning", "error", "critical", "exception", "log")
SPEAKERS: list[tuple[Any, str]] = [(logging.Logger, name) for name in LOUD] + [(warnings, "warn"), (builtins, "print")]
"""What tells people something, on which nothing that is computed depends."""

MAKE_AUTOCAST: Any = torch.autocast.__init__

CHECKPOINTS = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")
"""What `checkpoint(..., use_reentrant=False)` runs before and after the function, by version of torch."""


@contextmanager
def standing_in(tracer: Any) -> Iterator[None]:
    """Let all that a model's code calls reach the tracer, also functions that torch.fx was told to step over."""
    wrapped = torch.fx._symbolic_trace._wrapped_fns_to_patch
    stepped_over = dict(wrapped)
    wrapped.clear()
    replaced = list(replacements(tracer))
    originals = [(owner, name, vars(owner).get(name)) for owner, name, _ in replaced]
    try:
        for owner, name, replacement in replaced:
            setattr(owner, name, replacement)
        with written_out(), answering_for_values():
            yield
    finally:
        for owner, name, original in originals:
            delattr(owner, name) if original is None else setattr(owner, name, original)
        wrapped.update(stepped_over)


def replacements(tracer: Any) -> Iterator[tuple[Any, str, Any]]:
    """Go through what is replaced: its owner, its name, and by what."""
    for owner in NAMESPACES:
        for name, function in vars(owner).items():
            if isinstance(function, BuiltinFunctionType) and not function.__name__.startswith("_"):
                yield owner, name, record_compiled(tracer, function)
    for name in NUMBERS:
        yield torch, name, record_compiled(tracer, getattr(torch, name))
    yield torch, "Size", SymbolicSize
    for name, function in vars(math).items():
        if isinstance(function, BuiltinFunctionType):
            yield math, name, record_arithmetic(tracer, function)
    for owner, name in SPEAKERS:
        yield owner, name, forgive_texts(tracer, owner, name)
    yield torch.distributions.Distribution, "_validate_args", False  # asks for values, only to refuse some of them
    yield nn.Module, "training", watch_mode(tracer)
    yield nn.Module, "named_parameters", record_parameters(tracer)
    yield torch, "_check_with", check_numbers(torch._check_with)
    yield torch, "_assert", forgive_assertions(tracer)
    yield torch.autograd.Function, "apply", classmethod(record_function(tracer))
    yield torch.jit.ScriptFunction, "__call__", inline_script(tracer)
    yield apis, "vmap_impl", record_vmap(tracer)
    yield torch.autocast, "__init__", make_autocast
    yield torch.autocast, "__enter__", enter_autocast(tracer)
    yield torch.autocast, "__exit__", exit_autocast(tracer)
    yield torch.inference_mode, "__enter__", enter_inference(tracer)
    yield torch.inference_mode, "__exit__", leave_inference(tracer)
    for name in set(CHECKPOINTS).intersection(vars(checkpoint)):
        yield checkpoint, name, compute_at_once


def record_compiled(tracer: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Record a compiled function before it asks for the sizes that it is given."""

    @functools.wraps(function)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        if is_recorded(tracer, args, kwargs):
            return tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return compiled


def record_arithmetic(tracer: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Record a function of numbers, which would ask for the numbers themselves; of tensors it may ask for them."""

    @functools.wraps(function)
    def arithmetic(*args: Any) -> Any:
        if is_recorded(tracer, args, {}) and not any(isinstance(p._value, Tensor) for p in find_proxies(args)):
            return tracer.create_proxy("call_function", function, args, {})
        return function(*args)

    return arithmetic


def forgive_texts(tracer: Any, owner: Any, name: str) -> Callable[..., Any]:
    """Let what is said, to whoever looks on, name any size; where it names a line, that of the code which says it."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def say(*args: Any, **kwargs: Any) -> Any:
        if tracer.recording:
            for each in args:
                tracer.forgive(each)
            args = unwrap(args)
        if owner is warnings and len(args) > 2:  # of which the third is the stack level
            args = (*args[:2], args[2] + 1, *args[3:])
        elif owner is not builtins:
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # this function is one more
        return function(*args, **kwargs)

    return say


def forgive_assertions(tracer: Any) -> Callable[..., Any]:
    """Let an assertion name any size, also one of what no input decides, which is not recorded."""
    original = torch._assert

    @functools.wraps(original)
    def check(condition: Any, message: Any) -> None:
        if tracer.recording:
            tracer.forgive(message)
        original(condition, message)

    return check


def watch_mode(tracer: Any) -> property:
    """Let modules keep their mode as ever, and the tracer know when the code that it records asks for it."""

    def read(module: nn.Module) -> Any:
        if "training" not in vars(module):
            raise AttributeError("training")  # of scripted modules, which keep it elsewhere
        if tracer.recording:
            tracer.asked.modes.append(module)
        return vars(module)["training"]

    def write(module: nn.Module, training: Any) -> None:
        vars(module)["training"] = training

    return property(read, write)


def record_parameters(tracer: Any) -> Callable[..., Any]:
    """Let code that goes through its parameters meet what stands for them: it may ask of which type they are."""
    original = nn.Module.named_parameters

    @functools.wraps(original)
    def named_parameters(module: nn.Module, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        for name, parameter in original(module, *args, **kwargs):
            own = tracer.names.get(id(parameter)) if tracer.recording else None
            yield name, parameter if own is None else tracer.create_proxy("get_attr", own, (), {})

    return named_parameters


def check_numbers(check: Callable[..., Any]) -> Callable[..., Any]:
    """Let `torch._check` see the truth value itself."""

    def check_with(error: Any, condition: Any, message: Any) -> None:
        check(error, bool(condition) if type(condition) is ValueProxy else condition, message)

    return check_with


def record_function(tracer: Any) -> Callable[..., Any]:
    """Record a user's own `torch.autograd.Function` as one step; run a checkpointed function as it is."""
    original = vars(torch.autograd.Function)["apply"]  # the class method itself, not bound to a class

    def apply(kind: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if tracer.recording and kind is checkpoint.CheckpointFunction:
            function, _, *inputs = args
            return function(*inputs)
        function = original.__get__(None, kind)
        if is_recorded(tracer, args, kwargs):
            return tracer.record_opaque(kind.__name__, function, args, kwargs)
        return function(*args, **kwargs)

    return apply


def inline_script(tracer: Any) -> Callable[..., Any]:
    """Run the Python code of a scripted function; record one that has none as one step."""
    original = torch.jit.ScriptFunction.__call__

    def call(script: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_recorded(tracer, args, kwargs):
            return original(script, *args, **kwargs)
        if hasattr(script, "_torchdynamo_inline"):
            return script._torchdynamo_inline(*args, **kwargs)
        return tracer.record_opaque("scripted", functools.partial(original, script), args, kwargs)

    return call


def record_vmap(tracer: Any) -> Callable[..., Any]:
    """Record a function that `torch.vmap` maps over its arguments as one step."""
    original = vars(apis)["vmap_impl"]

    def vmap_impl(*args: Any, **kwargs: Any) -> Any:
        settings, inputs = args[:5], args[5:]  # func, in_dims, out_dims, randomness, chunk_size
        if is_recorded(tracer, inputs, kwargs):
            return tracer.record_opaque("vmap", functools.partial(original, *settings), inputs, kwargs)
        return original(*args, **kwargs)

    return vmap_impl


def make_autocast(mode: Any, device_type: Any, *args: Any, **kwargs: Any) -> None:
    """Make a `torch.autocast` that remembers of which tensor the device was asked, as in `x.device.type`."""
    MAKE_AUTOCAST(mode, unwrap(device_type), *args, **kwargs)
    mode.asked = device_type


def enter_autocast(tracer: Any) -> Callable[..., Any]:
    """Record where the code enters `torch.autocast`."""
    original: Any = torch.autocast.__enter__

    def enter(mode: Any) -> Any:
        if tracer.recording:
            settings = (getattr(mode, "asked", mode.device), mode.fast_dtype, mode._enabled, mode._cache_enabled)
            mode.entered = tracer.create_node("call_function", _enter_autocast, tracer.create_arg(settings), {})
        return original(mode)

    return enter


def exit_autocast(tracer: Any) -> Callable[..., Any]:
    """Record where the code leaves `torch.autocast`."""
    original = torch.autocast.__exit__

    def leave(mode: Any, *error: Any) -> Any:
        if tracer.recording:
            tracer.create_node("call_function", _exit_autocast, (mode.entered,), {})
        return original(mode, *error)

    return leave


def enter_inference(tracer: Any) -> Callable[..., Any]:
    """Record where the code enters `torch.inference_mode`, as `torch.no_grad`: a graph's tensors may be trained on."""
    original: Any = torch.inference_mode.__enter__

    def enter(mode: Any) -> Any:
        if not tracer.recording:
            return original(mode)
        mode.gradients = torch.no_grad() if mode.mode else torch.enable_grad()
        return mode.gradients.__enter__()

    return enter


def leave_inference(tracer: Any) -> Callable[..., Any]:
    """Record where the code leaves `torch.inference_mode`."""
    original = torch.inference_mode.__exit__

    def leave(mode: Any, *error: Any) -> Any:
        gradients = vars(mode).pop("gradients", None)
        return original(mode, *error) if gradients is None else gradients.__exit__(*error)

    return leave


def compute_at_once(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Save all that the gradient needs, instead of computing it again."""
    yield


def is_recorded(tracer: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call is one of the model's code, on traced values."""
    return tracer.recording and any(True for _ in find_proxies((args, kwargs)))


@contextmanager
def written_out() -> Iterator[None]:
    """Let attention arrive as its parts: without torch's fast paths, and without its hook for other tensor types."""
    has_hook = vars(F)["has_torch_function"]
    body = F.multi_head_attention_forward.__code__
    try:
        vars(F)["has_torch_function"] = lambda args: sys._getframe(1).f_code is not body and has_hook(args)
        with plain_attention():
            yield
    finally:
        vars(F)["has_torch_function"] = has_hook
