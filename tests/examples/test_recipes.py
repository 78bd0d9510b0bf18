"""Whether every recipe can be begun: its names exist, its method takes its granularity, two steps change weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import fxprune
from calls import make, read_call
from command_line import read_command_line
from models import build_model
from recipes import RECIPES, Recipe
from train import find_rate, make_model, make_optimizer, prepare_model


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name: str) -> None:
    recipe = RECIPES[name]
    shortcut = "padding" if "padding" in recipe.model else "projection"
    small = replace(recipe, model=f"resnet8(width=4, shortcut='{shortcut}')")
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    model = prepare_model(make_model(small, 4), images, small)
    optimizer = make_optimizer(model, small)
    LambdaLR(optimizer, lambda step: find_rate(small, step, small.epochs))
    if recipe.method != "none":
        fxprune.Scheduler(model, optimizer, total_steps=2)
    before = model.layer1[0].conv1.weight.clone()
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(images), labels)
        if recipe.method != "none":
            loss = loss + fxprune.penalty(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.isfinite()
    assert not torch.equal(before, model.layer1[0].conv1.weight)
    if recipe.prunings:
        fxprune.prune(model)
    assert fxprune.convert(model)(images).shape == (4, 4)


@pytest.mark.parametrize("name", sorted({recipe.model for recipe in RECIPES.values()}))
def test_a_recipe_names_a_model(name: str) -> None:
    assert build_model(read_call(name), 10) is not None


def test_every_method_has_a_recipe() -> None:
    methods = {read_call(recipe.method).name for recipe in RECIPES.values()}
    assert methods >= {"Feather", "ST3", "FilterSkeleton", "RNI", "NetworkSlimming", "UCS", "GMP", "STR", "ProbMask"}


def test_options_change_a_recipe() -> None:
    options = "--recipe st3-cifar10 --clip none --epochs 3 --exclude conv1 linear --flip --no-decay-all --out runs/x"
    recipe, place = read_command_line(options.split())
    changed = {"clip": None, "epochs": 3, "exclude": ("conv1", "linear")}
    assert recipe == replace(RECIPES["st3-cifar10"], **changed)
    assert place.out.name == "x"
    assert not place.resume


def test_a_call_makes_what_fxprune_exports() -> None:
    method = make("ST3(sigma=True, schedule=Cubic(0.1, end=0.4))")
    assert method == fxprune.ST3(sigma=True, schedule=fxprune.Cubic(0.1, 0.4))
    assert make("Sparsity(0.9)") == fxprune.Sparsity(0.9)


@pytest.mark.parametrize("text", ["ST3(", "ST3(sigma=open('x'))", "fxprune.ST3()", "ST3() + ST3()", "Feathers()"])
def test_a_call_of_anything_else_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match=r"give a name, or a call such as|fxprune has no such name"):
        make(text)


def test_the_rate_follows_the_schedule() -> None:
    step, cosine = Recipe(milestones=(0.5, 0.75)), Recipe(schedule="cosine", warm_up=5)
    assert [find_rate(step, epoch, 160) for epoch in (0, 79.9, 80, 119.9, 120)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    rates = [find_rate(cosine, epoch, 105) for epoch in (0, 2.5, 5, 55, 105)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best_from": 0.5}, "never on test images"),
        ({"prunings": 1}, "needs a --method"),
        ({"tune_compact": True}, "give --prunings 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        replace(RECIPES["dense-cifar10"], **change)
