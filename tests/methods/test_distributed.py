"""Whether two processes that train one model, whole (DDP) or in pieces (FSDP2), have the same masks and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as whole
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fxprune
from fxprune.errors import FxpruneError
from fxprune.methods.base import Method
from fxprune.model import PreparedModel
from tests.methods.test_contract import SHARE, batches, closed_share, make, make_optimizer

CASES: dict[str, tuple[Method, Any]] = {
    "units": (fxprune.ST3(sigma=True), "channel"),
    "remembered": (fxprune.GMP(), "stripe"),
    "skeleton": (fxprune.FilterSkeleton(alpha=1e-3, delta=0.6), "stripe"),
    "scalars": (fxprune.STR(start=-3.0), "weight"),
    "projected": (fxprune.ProbMask(), "weight"),
    "receding": (fxprune.RNI(strength=1e-2), "channel"),
}
STEPS = 4
WHOLE = whole.StateDictOptions(full_state_dict=True)


def train(prepared: PreparedModel, run: nn.Module, rank: int, steps: range) -> None:
    optimizer = make_optimizer(prepared)
    fxprune.Scheduler(prepared, optimizer, total_steps=STEPS)
    for step, (x, y) in zip(range(steps.stop), batches(), strict=False):
        if step in steps:
            torch.manual_seed(step)
            loss = nn.functional.cross_entropy(run(x[rank::2].double()), y[rank::2]) + fxprune.penalty(prepared)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def state(prepared: PreparedModel) -> dict[str, Any]:
    return whole.get_model_state_dict(prepared, options=WHOLE)


def measure(case: str, rank: int) -> dict[str, dict[str, Any]]:
    """The states after one training in three ways: whole, in pieces, and in pieces that resume in the middle."""
    one, pieces, resumed = (make(*CASES[case]).double() for _ in range(3))
    parallel = DistributedDataParallel(one)
    fully_shard(pieces), fully_shard(resumed)
    for half in (range(STEPS // 2), range(STEPS // 2, STEPS)):
        train(one, parallel, rank, half)
        train(pieces, pieces, rank, half)
        if half.start == 0:
            whole.set_model_state_dict(resumed, state(pieces), options=WHOLE)
        else:
            train(resumed, resumed, rank, half)
    ways = {"one": one, "pieces": pieces, "resumed": resumed}
    if CASES[case][0].one_shot:
        for prepared in ways.values():
            fxprune.prune(prepared)
    return {way: state(prepared) for way, prepared in ways.items()}


def refusals() -> dict[str, str]:
    """What is said where sharding cannot work."""
    said = {}
    sharded = make(fxprune.Feather(), "channel")
    fully_shard(sharded)
    by_layer = make(fxprune.Feather(), "channel")
    fully_shard(by_layer.get_submodule("head"))
    fully_shard(by_layer)
    for name, act in (
        ("convert", lambda: fxprune.convert(sharded)),
        ("by layer", lambda: by_layer(torch.randn(2, 3, 8, 8))),
    ):
        with pytest.raises(FxpruneError) as refusal:
            act()
        said[name] = str(refusal.value)
    return said


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    results: dict[str, Any] = {case: measure(case, rank) for case in CASES}
    torch.save({**results, "refusals": refusals()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    return first, second


def of_all_ranks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ranks share: statistics of batch norms are each rank's own."""
    return {name: value for name, value in state.items() if "running" not in name}


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_have_the_same_masks(case: str, ranks: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for way in ("one", "pieces"):
        first, second = (of_all_ranks(results[case][way]) for results in ranks)
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_pieces_train_as_the_whole_does(case: str, ranks: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one, pieces = (of_all_ranks(ranks[0][case][way]) for way in ("one", "pieces"))
    torch.testing.assert_close(one, pieces, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_pieces_go_on_from_a_state_dict_bit_for_bit(case: str, ranks: tuple[dict[str, Any], dict[str, Any]]) -> None:
    pieces, resumed = (of_all_ranks(ranks[0][case][way]) for way in ("pieces", "resumed"))
    torch.testing.assert_close(pieces, resumed, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_what_pieces_learnt_is_converted_exactly(case: str, ranks: tuple[dict[str, Any], dict[str, Any]]) -> None:
    prepared = make(*CASES[case]).double()
    prepared.load_state_dict(ranks[0][case]["pieces"])
    prepared.eval()
    if prepared.fxprune.target is not None:
        assert closed_share(prepared) == pytest.approx(SHARE, abs=0.04)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    compact = fxprune.convert(prepared)
    torch.testing.assert_close(compact(x), prepared(x), rtol=1e-9, atol=1e-9)
    assert not torch.equal(prepared(x), make(*CASES[case]).double().eval()(x))


def test_what_sharding_cannot_do_is_refused(ranks: tuple[dict[str, Any], dict[str, Any]]) -> None:
    said = ranks[0]["refusals"]
    assert "are sharded: load its whole state dict" in said["convert"]
    assert "head.weight is sharded in the forward" in said["by layer"]
