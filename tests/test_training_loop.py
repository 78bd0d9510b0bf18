"""Whether a training loop may do with a prepared model what it does with any: resume, copy, compile, autocast."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.exactness import relative_error, varied_images
from tests.test_api import build, prepare, sgd


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for number in steps:
        torch.manual_seed(number)
        optimizer.zero_grad()
        (model(varied_images(4, 3, 8, seed=number)).square().mean() + fxprune.penalty(model)).backward()
        optimizer.step()


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("method", [fxprune.Feather(), fxprune.ST3(sigma=True)])
def test_a_run_resumes_in_the_middle_bit_for_bit(granularity: str, method: Any) -> None:
    whole = prepare(granularity, method=method).train()
    optimizer = sgd(whole)
    fxprune.Scheduler(whole, optimizer, total_steps=8)
    train(whole, optimizer, range(4))
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    train(whole, optimizer, range(4, 8))
    resumed = prepare(granularity, build(seed=3), method=method).train()
    again = sgd(resumed)
    fxprune.Scheduler(resumed, again, total_steps=8)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(resumed, again, range(4, 8))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert int(resumed.fxprune.step) == 8
    x = varied_images(4, 3, 8)
    assert relative_error(whole, fxprune.convert(resumed), x, 1e-4) < 1e-12


def test_a_deep_copy_trains_by_itself() -> None:
    prepared = prepare("weight").train()
    clone = copy.deepcopy(prepared)
    before, optimizer = copy.deepcopy(prepared.state_dict()), sgd(clone)
    fxprune.Scheduler(clone, optimizer, total_steps=2)
    train(clone, optimizer, range(2))
    torch.testing.assert_close(prepared.state_dict(), before, rtol=0, atol=0)
    assert int(clone.fxprune.step) == 2
    assert (fxprune.convert(clone).get_submodule("4").weight == 0).any()


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_a_prepared_model_compiles_in_one_graph_in_both_modes(granularity: str) -> None:
    torch._dynamo.reset()
    prepared = prepare(granularity)
    fxprune.Scheduler(prepared, total_steps=1).step()
    compiled = torch.compile(prepared, backend="eager", fullgraph=True)
    x = varied_images(2, 3, 8)
    for training in (True, False):
        compiled.train(training), torch.manual_seed(0)
        mine = compiled(x)
        torch.manual_seed(0)
        torch.testing.assert_close(prepared(x), mine, rtol=1e-12, atol=1e-12)


def test_a_model_that_was_compiled_in_place_converts_and_its_copies_are_not_compiled() -> None:
    torch._dynamo.reset()
    prepared, x = prepare("channel").eval(), varied_images(2, 3, 8)
    fxprune.Scheduler(prepared, total_steps=1).step()
    prepared.compile(backend="eager")
    prepared(x)
    compact = fxprune.convert(prepared)
    compact.compile(backend="eager")
    compact(x)
    clone = copy.deepcopy(compact)
    assert clone._compiled_call_impl is None
    torch.testing.assert_close(clone.float()(x.float()).double(), prepared(x), rtol=1e-4, atol=1e-5)


def test_a_step_under_autocast_reaches_every_weight() -> None:
    prepared = fxprune.prepare(build().float(), torch.randn(2, 3, 8, 8))
    fxprune.Scheduler(prepared, total_steps=1).step()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = prepared.train()(torch.randn(4, 3, 8, 8))
    assert out.dtype is torch.bfloat16
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in prepared.parameters())


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    prepared, x = prepare().eval(), varied_images(4, 3, 8)
    fxprune.Scheduler(prepared, total_steps=1).step()
    prepared(x).square().sum().backward()
    whole = [p.grad.clone() for p in prepared.parameters()]
    prepared.zero_grad()
    for part in x.chunk(2):
        prepared(part).square().sum().backward()
    torch.testing.assert_close([p.grad for p in prepared.parameters()], whole)
