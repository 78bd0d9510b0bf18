"""Are parameters and multiply-accumulates what one counts by hand?"""

import pytest
import torch
from torch import nn

from fxprune.errors import TraceError
from fxprune.export import count
from fxprune.export.cost import count_by_weight


def test_a_convolution_is_counted_for_one_sample(block: nn.Module) -> None:
    cost = count(block, torch.randn(5, 3, 8, 8))
    assert cost.macs == 6 * 6 * (3 * 9 * 8 + 8 * 4)
    assert cost.parameters == 3 * 9 * 8 + 2 * 8 + 8 * 4 + 4
    assert str(cost) == "0.000 M parameters, 0.009 M multiply-accumulates a sample"


def test_shared_parameters_count_once_and_run_twice() -> None:
    layer = nn.Linear(4, 4, bias=False)
    cost = count(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 4))
    assert (cost.parameters, cost.macs) == (16, 32)


def test_buffers_are_no_parameters() -> None:
    assert count(nn.BatchNorm1d(4), torch.randn(2, 4)).parameters == 8


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_is_counted_op_by_op(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    sample = torch.randn(1, 5, 8) if batch_first else torch.randn(5, 1, 8)
    total = 5 * 8 * 8 * 4 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16
    assert count(layer, sample).macs == (total if batch_first else total // 5)


def test_weights_have_their_share_through_views_and_biases() -> None:
    layer, sample = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)
    found = count_by_weight(layer, sample)
    attention = {"self_attn.in_proj_weight": 5 * 8 * 24, "": 2 * 5 * 5 * 8, "self_attn.out_proj.weight": 5 * 8 * 8}
    assert found == {**attention, "linear1.weight": 5 * 8 * 16, "linear2.weight": 5 * 8 * 16}
    assert sum(found.values()) == count(layer, sample).macs


def test_a_recurrent_layer_is_counted() -> None:
    layer = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
    assert count(layer, torch.randn(3, 5, 8)).macs == 2 * 5 * 4 * 6 * (8 + 6)


def test_the_model_and_the_random_state_stay(block: nn.Module) -> None:
    block.train()
    statistics, state = block[1].running_mean.clone(), torch.get_rng_state()
    count(block, torch.ones(2, 3, 8, 8))
    assert block[4].training
    assert torch.equal(block[1].running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()


def test_without_inputs_some_are_made_or_asked_for() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert count(model) == count(model, torch.zeros(1, 3, 224, 224))
    with pytest.raises(TraceError, match="pass example_inputs"):
        count(nn.ReLU())


def test_a_layer_that_is_given_a_view_of_a_parameter_is_counted() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layer(self.token.expand(len(x), -1, -1))

    assert count(Token(), torch.randn(2, 3, 4)).macs == 8 * 4
