"""What makes comparing whole models mean something: nothing is zero or one by initialisation, and outputs vary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fxprune.model import Inputs, tensors_in
from tests import exactness

LEAST_VARIATION = 1e-3
"""An output that varies by less than this share of its size hardly depends on the input."""

HEADROOM = 3
"""How much larger the inputs are that set the statistics of batch norms.

SiLU and gates like squeeze-and-excitation's make what is larger than the statistics expect larger still, from norm to
norm: over the 116 norms of EfficientNet-B5 an input of 1.3 times the size becomes one of 500 times, and rounding errors
grow by 1e6. What is smaller stays calm.
"""


@dataclass(frozen=True)
class Comparison:
    """How far the outputs of two models lie apart, and how much those of the first vary, both relative."""

    error: float  # of the worst output, relative to its variation, or to its size where it hardly varies
    variation: float  # of the output that varies most, relative to its size

    @property
    def is_vacuous(self) -> bool:
        """Whether no output depends on the input, so that agreement shows nothing."""
        return not self.variation >= LEAST_VARIATION


def randomise(model: nn.Module, share: float) -> None:
    """Randomise as for the small models, then whatever is still constant: heads, tokens, scales and frozen statistics.

    `share` is the share of units that will be closed.
    """
    exactness.randomise(model, share=share)
    generator = torch.Generator().manual_seed(1)
    norms = {id(b) for m in model.modules() if isinstance(m, _BatchNorm) for b in m.buffers()}
    buffers = [
        (name, buffer)
        for name, buffer in model.named_buffers()
        if id(buffer) not in norms and name.endswith(("running_mean", "running_var", "bn.weight", "bn.bias"))
    ]
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *buffers]:
            if tensor.is_floating_point() and tensor.numel() and bool((tensor == tensor.reshape(-1)[0]).all()):
                fill(name, tensor, generator)
            elif tensor.dim() > 1 and tensor[0].numel() > 1:  # heads that begin small drown in their biases
                usual, spread = tensor[0].numel() ** -0.5, float(tensor.std())
                tensor.mul_(usual / spread if spread < 0.5 * usual else 1)


def fill(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Give a constant tensor random values: small ones for shifts, near 1 for scales, He's variance for matrices."""
    uniform = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
    longest = max(tensor.shape, default=1)
    if tensor.numel() > longest and min(s for s in tensor.shape if s > 1) > 1 and float(tensor.reshape(-1)[0]) == 0:
        normal = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        tensor.copy_(normal / math.sqrt(max(1, tensor[0].numel())))
    elif name.endswith(("bias", "mean", "token", "embed", "beta")):
        tensor.copy_(0.6 * uniform - 0.3)
    else:
        tensor.copy_(0.5 + uniform)


ADDING = ("add", "__add__", "__iadd__", "add_", "__radd__")
SCALING = ("mul", "__mul__", "__imul__", "mul_", "__rmul__")


class ResidualNorms(TorchFunctionMode):
    """Find the batch norms whose outputs, times a gate or not, are added to a shortcut, while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, _BatchNorm]] = {}
        self.found: dict[int, _BatchNorm] = {}
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.hooks = [norm.register_forward_hook(self.remember) for norm in norms]

    def remember(self, norm: _BatchNorm, inputs: Any, output: Tensor) -> None:
        self.made[id(output)] = (output, norm)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        norms = [self.made[id(operand)][1] for operand in args if id(operand) in self.made]
        if name in ADDING and len(norms) == 1:
            self.found[id(norms[0])] = norms[0]
        result = func(*args, **(kwargs or {}))
        self.made.pop(id(result), None)  # changed in place, it is the norm's output no longer
        if name in SCALING and len(norms) == 1:
            self.made[id(result)] = (result, norms[0])
        return result

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*error)


@torch.no_grad()
def damp_branches(model: nn.Module, inputs: Inputs) -> None:
    """Make the branches beside shortcuts small, as trained ones are, the smaller the more there are of them.

    Chains of batch norms multiply every rounding error.
    """
    with ResidualNorms(model) as norms:
        runs(model.eval(), inputs)
    factor = min(0.3, max(1, len(norms.found)) ** -0.5)
    for norm in norms.found.values():
        for parameter in norm.parameters():
            parameter.mul_(factor)


class Settling(TorchDispatchMode):
    """Set the statistics of batch norms from their inputs, as these come, and disturb them by a fifth."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_batch_norm.default:
            x, _, _, mean, variance, training = args[:6]
            if not training:
                self.set_statistics(x, mean, variance)
        return func(*args, **(kwargs or {}))

    def set_statistics(self, x: Tensor, mean: Tensor, variance: Tensor) -> None:
        """A channel that hardly varies over few inputs gets a tenth of its layer's mean variance.

        Divided by next to nothing it would blow rounding errors up, as no trained model does.
        """
        found, average = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        if not found.any():
            return
        shift, scale = (0.4 * torch.rand(mean.shape, generator=self.generator) - 0.2 for _ in range(2))
        variance.copy_(found.clamp(min=0.1 * float(found.mean())) * (1 + scale))
        mean.copy_(average + shift * variance.sqrt())


@torch.no_grad()
def settle(model: nn.Module, inputs: Inputs) -> None:
    """Set batch-norm statistics to about those of HEADROOM times the inputs, norm by norm; leaves eval mode."""
    with Settling():
        runs(model.eval(), tree_map_only(Tensor, lambda t: HEADROOM * t if t.is_floating_point() else t, inputs))


def runs(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model runs on the inputs, in the mode in which it is."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model(*inputs[0], **inputs[1])
    except Exception:  # noqa: BLE001 - whatever it is, the answer is no
        return False
    return True


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a model in eval mode and list its output tensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [t.clone() for t in tensors_in(model.eval()(*inputs[0], **inputs[1]))]


def compare(expected: list[Tensor], actual: list[Tensor]) -> Comparison:
    """Compare all outputs of one run; where whole numbers differ, the error is the share that does."""
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return Comparison(math.inf, math.nan)
    error = variation = 0.0
    for want, have in zip(expected, actual, strict=True):
        if not want.numel():
            continue
        if not want.is_floating_point():
            error = max(error, float((want != have).double().mean()))
            continue
        want, have = want.double(), have.double()
        difference = float(torch.where((want == have) | (want.isnan() & have.isnan()), 0.0, (want - have).abs()).max())
        finite = torch.where(want.isfinite(), want, 0.0)
        size = float(finite.abs().max()) or 1.0
        spread = float((finite.amax(0) - finite.amin(0)).max()) if finite.dim() > 1 else 0.0
        error = max(error, difference / (spread if spread >= LEAST_VARIATION * size else size))
        error = math.inf if math.isnan(difference) else error
        variation = max(variation, spread / size)
    return Comparison(error, variation)
