"""When do the masks act? Before and after each step of the optimizer, along the method's schedule."""

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fxprune.errors import OptimizerError
from fxprune.masks import Masks
from fxprune.methods.base import Method


class Scheduler:
    """Follow an optimizer: after its step t, of `total_steps` in all, close the share that the schedule says.

        s(t) = target * ramp(t / total_steps)

    It hooks into `optimizer.step()`, so accumulated gradients and the fp16 steps that a GradScaler skips count
    rightly by themselves. Without an optimizer call `step()` by hand after each. The count lives in the prepared
    model's buffers: a run that loads its state dict goes on where it stopped. Past `total_steps` the sparsity
    stays at the target. What a method does to gradients, as the Filter Skeleton, it does before the step. Methods
    that prune in one go leave the masks as they are until `fxprune.prune` is called.

    Raises OptimizerError where `prepared` does not come from `fxprune.prepare`, where the optimizer holds none of
    its masked parameters, or where total_steps is below 1.
    """

    def __init__(self, prepared: nn.Module, optimizer: Optimizer | None = None, *, total_steps: int) -> None:
        masks = getattr(prepared, "fxprune", None)
        if not isinstance(masks, Masks):
            raise OptimizerError(
                f"{type(prepared).__name__} has no masks; give the model that fxprune.prepare returned "
                "(unwrapped: ddp.module)"
            )
        if total_steps < 1:
            raise OptimizerError(f"total_steps={total_steps}: give the number of optimizer steps of the whole training")
        self.total_steps = total_steps
        self._prepared = prepared
        self._masks = masks
        self._follows_optimizer = optimizer is not None
        if optimizer is not None:
            _check_optimizer(optimizer, self._parameters())
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)
        elif type(masks.method).before_step is not Method.before_step:
            raise OptimizerError(
                f"{type(masks.method).__name__} changes gradients before each step; give the optimizer to the Scheduler"
            )

    @property
    def sparsity(self) -> float:
        """The share that the schedule closes after the steps so far; 0 where that is not the target's to say."""
        if self._masks.target is None or self._masks.method.one_shot:
            return 0.0
        return self._masks.target.share * self._masks.method.schedule(int(self._masks.step), self.total_steps)

    def step(self) -> None:
        """Count one optimizer step and refresh the masks. Raises OptimizerError if an optimizer is followed."""
        if self._follows_optimizer:
            raise OptimizerError(
                "this Scheduler already follows the optimizer and counts its steps; "
                "leave out scheduler.step(), or make it without the optimizer"
            )
        self._advance()

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._masks.before_step(self._parameters())

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._advance()

    def _advance(self) -> None:
        self._masks.step += 1
        if not self._masks.method.one_shot:
            progress = min(1.0, int(self._masks.step) / self.total_steps)
            self._masks.after_step(self._parameters(), self.sparsity, progress)

    def _parameters(self) -> dict[str, Tensor]:
        return find_masked(self._prepared, self._masks)


def _check_optimizer(optimizer: Optimizer, parameters: dict[str, Tensor]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    if trained and not any(id(parameter) in held for parameter in trained):
        raise OptimizerError(
            f"the optimizer holds none of the prepared model's {len(trained)} masked parameters; "
            "make it after fxprune.prepare, from prepared.parameters()"
        )


def find_masked(prepared: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Give all parameters that masks ask for, by name."""
    return {name: _find_tensor(prepared, name) for name in masks.parameter_names}


def _find_tensor(model: nn.Module, name: str) -> Tensor:
    """Give the tensor of that name, by attributes: one that is shared or parametrised is in no list of parameters."""
    path, _, attribute = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), attribute)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, no tensor")
    return tensor
