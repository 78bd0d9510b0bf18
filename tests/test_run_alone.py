"""How passes run: one call at a time, and without a search for circles of references, which goes on behind them."""

import gc
import threading

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import TraceError

seen: list[bool] = []


class Looks(nn.Module):
    """A layer whose code notes whether Python looks for circles."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen.append(gc.isenabled())
        return self.second(self.first(x).relu())


def test_circles_are_not_looked_for_meanwhile_and_are_again_behind() -> None:
    seen.clear()
    assert gc.isenabled()
    fxprune.convert(fxprune.prepare(Looks(), torch.randn(4, 8)))
    assert seen
    assert not any(seen)
    assert gc.isenabled()


def test_they_are_looked_for_again_where_a_model_is_refused() -> None:
    with pytest.raises(TraceError):
        fxprune.prepare(Looks(), torch.randn(4, 9))
    assert gc.isenabled()


def test_who_has_switched_the_search_off_finds_it_off() -> None:
    gc.disable()
    try:
        fxprune.prepare(Looks(), torch.randn(4, 8))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_threads_prepare_one_after_the_other() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            fxprune.convert(fxprune.prepare(Looks(), torch.randn(4, 8)))
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert Looks().training


used: list[tuple[bool, int]] = []


class Counts(Looks):
    """Notes how many threads its code has, and whether tensors hold values."""

    def forward(self, x: Tensor) -> Tensor:
        used.append((type(x) is Tensor, torch.get_num_threads()))
        return self.second(self.first(x).relu())


@pytest.mark.parametrize("count", [1, 3])
def test_models_run_in_all_threads_and_passes_in_one(count: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    used.clear()
    try:
        prepared = fxprune.prepare(Counts(), torch.randn(4, 8))
        fxprune.convert(Counts(), torch.randn(4, 8))
        assert torch.get_num_threads() == count
        seen_by_passes = {threads for has_values, threads in used if not has_values}
        with pytest.raises(TraceError):
            fxprune.prepare(Counts(), torch.randn(4, 9))
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert {threads for has_values, threads in used if has_values} == {count}
    assert seen_by_passes == {1}
    assert prepared.training
