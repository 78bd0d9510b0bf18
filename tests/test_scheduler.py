"""Does the scheduler follow the optimizer, and only the right one?"""

import copy

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import OptimizerError
from fxprune.masks import Masks
from fxprune.methods.base import Method
from fxprune.methods.feather import Feather
from fxprune.methods.st3 import ST3
from fxprune.methods.targets import Sparsity
from fxprune.scheduler import Scheduler


class Masked(nn.Module):
    def __init__(self, method: Method | None = None) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(10, 10), nn.Linear(10, 2)
        self.fxprune = Masks(method or Feather(), Sparsity(0.9), "weight")
        self.fxprune.add_weight_mask("layer.weight", self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fxprune.weight_masks["layer-weight"](self.layer.weight)
        return self.head(nn.functional.linear(x, weight, self.layer.bias))


def closed(model: Masked) -> int:
    return int((model.fxprune.weight_masks["layer-weight"](model.layer.weight) == 0).sum())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def train(model: Masked, optimizer: torch.optim.Optimizer, steps: int, accumulate: int = 1) -> None:
    for _ in range(steps):
        for _ in range(accumulate):
            model(torch.randn(4, 10)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_sparsity_follows_the_optimizers_steps() -> None:
    model = Masked()
    optimizer = sgd(model)
    scheduler = Scheduler(model, optimizer, total_steps=20)
    assert scheduler.sparsity == 0
    for step in range(1, 25):
        train(model, optimizer, 1)
        expected = 0.9 * (1 - (1 - min(step / 10, 1)) ** 3)
        assert scheduler.sparsity == pytest.approx(expected)
        assert closed(model) == int(99 * scheduler.sparsity) + 1


@pytest.mark.parametrize(("step", "sparsity"), [(1, 0.005389), (50, 0.2439), (100, 0.4392), (250, 0.7875), (500, 0.9)])
def test_feathers_published_schedule_is_met(step: int, sparsity: float) -> None:
    model = Masked()
    scheduler = Scheduler(model, total_steps=1000)
    model.fxprune.step += step - 1
    scheduler.step()
    assert scheduler.sparsity == pytest.approx(sparsity, abs=1e-5)


def test_st3s_published_schedule_is_met() -> None:
    model = Masked(ST3())
    scheduler = Scheduler(model, total_steps=160 * 352)
    for step, sparsity in [(5 * 352, 0.0), (5 * 352 + 1, 0.000102), (15 * 352, 0.3141), (80 * 352, 0.9)]:
        model.fxprune.step.fill_(step - 1)
        scheduler.step()
        assert scheduler.sparsity == pytest.approx(sparsity, abs=5e-5 if sparsity > 0.01 else 1e-6)


def test_accumulated_gradients_count_once() -> None:
    model = Masked()
    optimizer = sgd(model)
    Scheduler(model, optimizer, total_steps=20)
    train(model, optimizer, steps=3, accumulate=4)
    assert int(model.fxprune.step) == 3


def test_skipped_fp16_steps_do_not_count() -> None:
    model = Masked()
    optimizer = sgd(model)
    Scheduler(model, optimizer, total_steps=20)
    scaler = torch.amp.GradScaler("cpu")
    for bad in (False, True, False, True):
        loss = model(torch.randn(4, 10)).sum()
        scaler.scale(loss * (float("inf") if bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert int(model.fxprune.step) == 2


def test_by_hand_it_does_the_same() -> None:
    torch.manual_seed(0)
    model = Masked()
    by_hand = copy.deepcopy(model)
    optimizer = sgd(model)
    Scheduler(model, optimizer, total_steps=10)
    scheduler = Scheduler(by_hand, total_steps=10)
    optimizer.step()  # without gradients nothing moves but the masks
    scheduler.step()
    assert torch.equal(model.fxprune.threshold, by_hand.fxprune.threshold)
    assert int(by_hand.fxprune.step) == 1


def test_a_run_resumes_where_it_stopped() -> None:
    torch.manual_seed(0)
    model = Masked()
    optimizer = sgd(model)
    Scheduler(model, optimizer, total_steps=20)
    train(model, optimizer, 4)
    resumed = Masked()
    scheduler = Scheduler(resumed, sgd(resumed), total_steps=20)
    resumed.load_state_dict(model.state_dict())
    assert scheduler.sparsity == pytest.approx(0.9 * (1 - 0.6**3))
    assert closed(resumed) == closed(model)


def test_a_compiled_model_and_one_with_a_shared_layer_are_followed() -> None:
    model = Masked()
    model.alias = model.layer
    model.fxprune.add_weight_mask("alias.weight", model.alias.weight)
    scheduler = Scheduler(torch.compile(model, backend="eager"), sgd(model), total_steps=20)
    scheduler._advance()
    assert model.fxprune.threshold > 0


def test_an_optimizer_of_the_original_model_is_refused() -> None:
    model = Masked()
    optimizer = sgd(model)
    with pytest.raises(
        OptimizerError, match=r"none of the prepared model's 1 masked .* make it after fxprune\.prepare"
    ):
        Scheduler(copy.deepcopy(model), optimizer, total_steps=10)


def test_an_optimizer_of_some_parameters_is_followed() -> None:
    model = Masked()
    Scheduler(model, torch.optim.SGD([model.layer.weight], lr=0.1), total_steps=10)
    model.layer.weight.requires_grad_(False)  # a frozen weight can be pruned while others train
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    Scheduler(model, optimizer, total_steps=10)
    optimizer.step()
    assert int(model.fxprune.step) == 1


def test_a_refused_optimizer_is_left_without_a_hook() -> None:
    model = Masked()
    other = copy.deepcopy(model)
    optimizer = sgd(model)
    with pytest.raises(OptimizerError):
        Scheduler(other, optimizer, total_steps=10)
    train(model, optimizer, 1)
    assert int(other.fxprune.step) == int(model.fxprune.step) == 0


@pytest.mark.parametrize("total_steps", [0, -5])
def test_a_training_without_steps_is_refused(total_steps: int) -> None:
    with pytest.raises(OptimizerError, match=f"total_steps={total_steps}: give the number of optimizer steps"):
        Scheduler(Masked(), total_steps=total_steps)


def test_an_unprepared_model_is_refused() -> None:
    with pytest.raises(OptimizerError, match=r"Linear has no masks; give the model that fxprune\.prepare returned"):
        Scheduler(nn.Linear(2, 2), total_steps=10)


def test_steps_by_hand_beside_an_optimizer_are_refused() -> None:
    model = Masked()
    scheduler = Scheduler(model, sgd(model), total_steps=10)
    with pytest.raises(OptimizerError, match="already follows the optimizer"):
        scheduler.step()


def test_a_scheduler_keeps_no_state_beside_the_models() -> None:
    """Scripts save the state of all schedulers alike; that of another one is refused."""
    prepared = fxprune.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    scheduler = Scheduler(prepared, optimizer, total_steps=4)
    assert scheduler.state_dict() == {}
    scheduler.load_state_dict(scheduler.state_dict())
    with pytest.raises(OptimizerError, match="a Scheduler keeps no state, and this holds T_max"):
        scheduler.load_state_dict({"T_max": 3})
