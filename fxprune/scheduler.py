"""When do the masks act? Before and after each step of the optimizer, along the method's schedule."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxprune.check_unchanged import check_unchanged
from fxprune.errors import FxpruneError, OptimizerError, TargetError
from fxprune.is_number import is_number
from fxprune.masks import Masks
from fxprune.methods.base import Method
from fxprune.model import PreparedModel, read_tensor
from fxprune.sharding import gather


class Scheduler:
    """Follow an optimizer: after its step t, of `total_steps` in all, close the share that the schedule says.

        s(t) = target * ramp(t / total_steps)

    It hooks into `optimizer.step()`, so accumulated gradients and the fp16 steps that a GradScaler skips count
    rightly by themselves. Without an optimizer call `step()` by hand after each. The count lives in the prepared
    model's buffers: a run that loads its state dict goes on where it stopped. Past `total_steps` the sparsity
    stays at the target. What a method does to gradients, as the Filter Skeleton, it does before the step. Methods
    that prune in one go leave the masks as they are until `fxprune.prune` is called.

    Raises OptimizerError where `prepared` does not come from `fxprune.prepare`, where the optimizer holds none of
    its masked parameters or is followed already, or where total_steps is no whole number from 1 on; FxpruneError where
    the model was changed. `optimizer.step()` raises FxpruneError, before anything has changed, where a gradient is NaN
    or infinite or a parameter has been replaced.
    """

    def __init__(self, prepared: nn.Module, optimizer: Optimizer | None = None, *, total_steps: int) -> None:
        masks = getattr(prepared, "fxprune", None)
        if not isinstance(masks, Masks):
            raise OptimizerError(
                f"{type(prepared).__name__} has no masks; give the model that fxprune.prepare returned "
                "(unwrapped: ddp.module)"
            )
        if optimizer is not None and not hasattr(optimizer, "register_step_post_hook"):
            raise OptimizerError(
                f"{type(optimizer).__name__} is no torch.optim.Optimizer, whose steps could be followed; give the "
                "optimizer, or leave it out and call step() after each of its steps"
            )
        if isinstance(prepared, PreparedModel):
            check_unchanged(prepared)
        _NEWEST[masks] = weakref.ref(self)
        self.total_steps = total_steps  # raises where it is none
        self._prepared = prepared
        self._masks = masks
        self._follows_optimizer = optimizer is not None
        self._followed = self._parameters()
        known = {*self._followed, *(f"fxprune.{name}" for name, _ in masks.named_parameters())}
        self._unmasked = {name: each for name, each in prepared.named_parameters() if name not in known}
        if optimizer is not None:
            self._check_optimizer(optimizer)
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)
        elif self._edits_gradients:
            raise OptimizerError(
                f"{type(masks.method).__name__} changes gradients before each step; give the optimizer to the Scheduler"
            )

    @property
    def sparsity(self) -> float:
        """The share that the schedule closes after the steps so far; 0 where that is not the target's to say."""
        if self._masks.target is None or self._masks.method.one_shot:
            return 0.0
        schedule = self._masks.method.schedule
        ramp = schedule(int(self._masks.step), self.total_steps)
        if not is_number(ramp) or not 0 <= ramp <= 1:
            raise TargetError(
                f"schedule={schedule!r} gives {ramp!r} at step {int(self._masks.step)} of {self.total_steps}: "
                "it has to give the share of the target that is reached then, from 0 to 1"
            )
        return self._masks.target.share * ramp

    def step(self) -> None:
        """Count one optimizer step and refresh the masks. Raises OptimizerError if an optimizer is followed."""
        if self._follows_optimizer:
            raise OptimizerError(
                "this Scheduler already follows the optimizer and counts its steps; "
                "leave out scheduler.step(), or make it without the optimizer"
            )
        self._advance()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step and all masks are in the model's own state dict, and are resumed with it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` gives, which is nothing; raises OptimizerError if it is another's."""
        if state:
            raise OptimizerError(
                f"a Scheduler keeps no state, and this holds {', '.join(map(str, state))}: the step and the masks are "
                "loaded with the model's own state dict"
            )

    @property
    def total_steps(self) -> int:
        """The number of optimizer steps of the whole training."""
        return self._total_steps

    @total_steps.setter
    def total_steps(self, total_steps: int) -> None:
        if not is_number(total_steps) or total_steps < 1 or total_steps % 1 != 0:  # so are fractions, NaN and infinity
            raise OptimizerError(
                f"total_steps={total_steps!r}: give the number of optimizer steps of the whole training, a whole one"
            )
        self._total_steps = total_steps

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _is_skipped(optimizer):
            return
        if _NEWEST[self._masks]() not in (None, self):
            raise OptimizerError(
                "another Scheduler was made for this model since, and each would count its optimizer's steps; where "
                "two optimizers train it at once, make one Scheduler without an optimizer, and call step() after both"
            )
        if any(closure is not None for closure in (*args[1:], *kwargs.values())) and self._edits_gradients:
            raise OptimizerError(
                f"{type(self._masks.method).__name__} changes gradients before each step, and a closure computes them "
                "within it; call loss.backward() first, then optimizer.step() without the closure"
            )
        parameters = self._parameters()
        for name, parameter in parameters.items():
            if parameter is not self._followed[name] and isinstance(parameter, nn.Parameter):
                raise OptimizerError(
                    f"{name} has been replaced since the Scheduler was made, and the optimizer trains the one before; "
                    "make both of them after such a change"
                )
        variables = self._masks.variables
        if not self._prepared.training and variables and all(v.grad is None for v in variables.values()):
            raise OptimizerError(
                f"the masks of {type(self._masks.method).__name__} receive no gradient, because the model is in eval "
                "mode; call prepared.train() before the training"
            )
        _check_gradients({**self._unmasked, **parameters, **variables})
        scale = getattr(optimizer, "grad_scale", None)  # a GradScaler leaves it to fused optimizers to divide by it
        self._masks.before_step(parameters, 1.0 if scale is None else scale)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _is_skipped(optimizer):
            self._advance()

    def _advance(self) -> None:
        self._masks.step += 1
        if not self._masks.method.one_shot:
            progress = min(1.0, int(self._masks.step) / self.total_steps)
            self._masks.after_step(self._parameters(), self.sparsity, progress)

    def _parameters(self) -> dict[str, Tensor]:
        return find_masked(self._prepared, self._masks)

    def _find_parameters(self, name: str) -> list[Tensor]:
        """List the parameters behind a masked tensor: itself, or those of which its layer computes it."""
        tensor = self._followed[name]
        owner = self._prepared.get_submodule(name.rpartition(".")[0])
        return [tensor] if isinstance(tensor, nn.Parameter) else list(owner.parameters())

    @property
    def _edits_gradients(self) -> bool:
        return type(self._masks.method).before_step is not Method.before_step

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        trained = [each for name in self._followed for each in self._find_parameters(name) if each.requires_grad]
        if trained and not any(id(parameter) in held for parameter in trained):
            raise OptimizerError(
                f"the optimizer holds none of the prepared model's {len(trained)} masked parameters; "
                "make it after fxprune.prepare, from prepared.parameters(), and after fully_shard where that is used"
            )
        learnt = [variable for variable in self._masks.variables.values() if variable.requires_grad]
        if not all(id(variable) in held for variable in learnt):
            raise OptimizerError(
                f"the optimizer lacks variables of the masks, which {type(self._masks.method).__name__} learns; make "
                "it from fxprune.param_groups(prepared, lr=...) or prepared.parameters()"
            )
        for hook in optimizer._optimizer_step_post_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, Scheduler) and other._masks is self._masks:
                raise OptimizerError(
                    "a Scheduler follows this optimizer already, and each step would count twice; keep the first one, "
                    "or make a new optimizer for the next training"
                )


_NEWEST: weakref.WeakKeyDictionary[Masks, weakref.ref[Scheduler]] = weakref.WeakKeyDictionary()
"""The Scheduler that was made last for each model's masks."""


def _is_skipped(optimizer: Optimizer) -> bool:
    """Say whether a GradScaler has told a fused optimizer, which it calls all the same, to leave this step out."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


@torch.no_grad()
def _check_gradients(parameters: Mapping[str, Tensor]) -> None:
    """Refuse gradients that are NaN or infinite: a step would spoil the weights, and then no threshold exists."""
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.is_leaf}
    dense = {name: gradient for name, gradient in gradients.items() if gradient is not None and not gradient.is_sparse}
    sums = [gather(gradient.sum(dtype=torch.float32)) for gradient in dense.values()]
    if not sums or bool(torch.stack([each.to(sums[0].device) for each in sums]).sum().isfinite()):
        return
    for name, gradient in dense.items():
        bad = int(gather((~gradient.isfinite()).sum()))
        if bad:
            raise FxpruneError(
                f"{name}: the gradient is NaN or infinite in {bad} of {gradient.numel()} places; the optimizer has not "
                "stepped: skip this batch, clip the gradients, or lower the learning rate"
            )


def find_masked(prepared: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Give all parameters that masks ask for, by name. Raises FxpruneError where one is gone or of another size."""
    parameters = {name: _find_tensor(prepared, name) for name in masks.parameter_names}
    for name, dim, size in masks.sizes:
        if parameters[name].dim() <= dim or parameters[name].shape[dim] != size:
            raise FxpruneError(
                f"{name} has the sizes {tuple(parameters[name].shape)}, but its mask {size} in dimension {dim}; "
                "change the original model and prepare it again"
            )
    return parameters


def _find_tensor(model: nn.Module, name: str) -> Tensor:
    """Give the tensor of that name, by attributes: one that is shared or parametrised is in no list of parameters."""
    path, _, attribute = name.rpartition(".")
    try:
        tensor = read_tensor(model.get_submodule(path), attribute)
    except AttributeError:
        tensor = None
    if not isinstance(tensor, Tensor):
        raise FxpruneError(f"{name}, which is masked, is gone; change the original model and prepare it again")
    return tensor
