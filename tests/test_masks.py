"""Do masks compute q in the forward, pass the gradient, and keep their state?"""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from fxprune import mask_modules as module
from fxprune.errors import FxpruneError, TargetError
from fxprune.mask_modules import UnitMask, WeightMask
from fxprune.masks import Masks
from fxprune.methods.base import Method
from fxprune.methods.feather import Feather
from fxprune.methods.gmp import GMP
from fxprune.methods.probmask import ProbMask
from fxprune.methods.scores import Slice
from fxprune.methods.st3 import ST3
from fxprune.methods.targets import Sparsity
from fxprune.penalty import penalty


class Masked(nn.Module):
    """Two linear layers, every weight masked, or the units between them masked in the second one's columns."""

    def __init__(self, method: Method, share: float, granularity: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Linear(6, 20), nn.BatchNorm1d(20), nn.Linear(20, 3)
        index = torch.arange(20)
        slices = [Slice("first.weight", 0, index), Slice("norm.weight", 0, index), Slice("second.weight", 1, index)]
        by_unit = granularity == "channel"
        self.fxprune = Masks(
            method, Sparsity(share), granularity, units=20 if by_unit else 0, slices=slices if by_unit else ()
        )
        if by_unit:
            self.fxprune.add_unit_mask("second.weight", 1, index)
            self.fxprune.add_alive("norm", index)
            nn.init.uniform_(self.norm.weight)
        else:
            self.fxprune.add_weight_mask("first.weight", self.first.weight)
            self.fxprune.add_weight_mask("second.weight", self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        masks = self.fxprune
        if masks.granularity == "channel":
            weight = masks.unit_masks["second-weight"](self.second.weight)
            return nn.functional.linear(self.norm(self.first(x)).relu(), weight, self.second.bias)
        x = nn.functional.linear(x, masks.weight_masks["first-weight"](self.first.weight), self.first.bias)
        return nn.functional.linear(x.relu(), masks.weight_masks["second-weight"](self.second.weight), self.second.bias)

    def refresh(self, sparsity: float) -> None:
        self.fxprune.refresh(dict(self.named_parameters()), sparsity)


VARIANTS = [
    (method, share, granularity)
    for granularity in ("weight", "channel")
    for method, share in ((Feather(), 0.5), (Feather(), 0.97), (ST3(), 0.5), (ST3(sigma=True), 0.5))
]


def refreshed_mask(method: Method, weight: Tensor, threshold: float, theta: float = 1.0, rows: int = 0) -> WeightMask:
    mask = WeightMask("w", weight, method, theta, rows)
    mask.refresh(weight, torch.tensor(threshold))
    return mask


def test_feather_masks_the_published_vector() -> None:
    weight = torch.tensor([[0.5, -0.3, 0.1, -0.05]])
    expected = torch.tensor([[0.489097, -0.266840, 0, 0]])
    torch.testing.assert_close(refreshed_mask(Feather(), weight, 0.2)(weight), expected, atol=1e-6, rtol=0)


def test_st3_masks_the_published_vector_filter_by_filter() -> None:
    weight = torch.tensor([[0.5, -0.3, 0.1, -0.05], [0.1, 0.1, 0.1, 0.1]])
    expected = torch.tensor([[0.355590, -0.118530, 0, 0], [0, 0, 0, 0]])
    mask = refreshed_mask(ST3(), weight, 0.2)
    torch.testing.assert_close(mask(weight), expected, atol=1e-5, rtol=0)
    assert mask.factor is not None
    assert mask.factor.shape == (2, 1)
    by_columns = refreshed_mask(ST3(), weight.t(), 0.2, rows=1)
    torch.testing.assert_close(by_columns(weight.t()), expected.t(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", [Feather(), ST3()], ids=str)
@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_without_a_threshold_the_weight_passes_bit_by_bit(method: Method, threshold: float) -> None:
    weight = torch.randn(50, 30)
    weight[0] = 0
    assert torch.equal(refreshed_mask(method, weight, threshold)(weight), weight)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_blocks_give_what_the_whole_gives(
    rows: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(37, 16, 3, 3).to(memory_format=layout)
    upstream = torch.randn(37, 16, 3, 3)
    for method in (Feather(), ST3(), GMP(), GMP(sticky=False)):
        mask = refreshed_mask(method, weight, 0.5, theta=0.25, rows=rows)
        results = []
        for block in (module._BLOCK, 500):
            monkeypatch.setattr(module, "_BLOCK", block)
            leaf = weight.clone().requires_grad_()
            masked = mask(leaf)
            masked.backward(upstream)
            results.append((masked.detach(), leaf.grad))
        monkeypatch.undo()
        (whole, whole_gradient), (masked, gradient) = results
        torch.testing.assert_close(masked, whole, atol=1e-6, rtol=1e-6)
        assert torch.equal(masked == 0, whole == 0)
        assert torch.equal(gradient, whole_gradient)


def test_gradients_of_gradients_pass_a_mask_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 10)
    torch.manual_seed(0)
    weight = torch.randn(30, 20, requires_grad=True)
    mask = refreshed_mask(GMP(sticky=False), weight.detach(), 0.7, theta=0.0)
    (first,) = torch.autograd.grad(mask(weight).pow(3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    is_open = weight.detach().abs() > 0.7
    torch.testing.assert_close(second, torch.where(is_open, 6 * weight.detach(), 0.0))


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_a_weights_gradient_passes_whole_or_by_theta_where_closed(theta: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(30, 20, requires_grad=True)
    upstream = torch.randn(30, 20)
    for method in (Feather(), ST3()):
        weight.grad = None
        refreshed_mask(method, weight.detach(), 0.7, theta)(weight).backward(upstream)
        assert weight.grad is not None
        assert torch.equal(weight.grad, torch.where(weight.abs() > 0.7, upstream, theta * upstream))


@pytest.mark.parametrize(
    ("shape", "rows", "shared"),
    [((37, 61, 3, 3), 0, ()), ((2063, 513), 0, ()), ((5, 7, 3, 3), 0, (1,)), ((5, 7, 3, 3), 1, (0,)), ((11,), 0, ())],
    ids=str,
)
def test_what_is_remembered_never_opens_again(shape, rows, shared) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, requires_grad=True)
    mask = WeightMask("w", weight, GMP(), 0.0, rows, shared)
    expected = torch.ones(mask.kept.sizes, dtype=torch.bool)
    assert torch.equal(mask(weight), weight)
    for threshold in (0.2, 0.7, 0.0):
        with torch.no_grad():
            weight += 0.3 * torch.randn(shape)
        magnitude = weight.detach().square().mean(shared, keepdim=True).sqrt() if shared else weight.detach().abs()
        expected &= magnitude > (threshold or -1)
        mask.refresh(weight, torch.tensor(threshold))
        masked = mask(weight)
        weight.grad = None
        masked.sum().backward()
        assert torch.equal(masked, weight * expected)
        assert torch.equal(weight.grad, expected.float().expand_as(weight))


@pytest.mark.parametrize("theta", [0.0, 0.5])
def test_weights_of_zero_learn_before_there_is_a_threshold(theta: float) -> None:
    weight = torch.tensor([[0.0, 2.0, -0.5]], requires_grad=True)
    for threshold, factor in ((0.0, 1.0), (1.0, theta)):
        weight.grad = None
        refreshed_mask(GMP(sticky=False), weight.detach(), threshold, theta)(weight).sum().backward()
        assert weight.grad.tolist() == [[factor, 1.0, factor]]


def test_a_units_gradient_leaves_out_the_gate_and_none_reaches_what_is_closed() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 4, 3, 3, requires_grad=True)
    upstream = torch.randn(5, 4, 3, 3)
    mask = UnitMask("w", 1, torch.tensor([2, 0, -1, 1]))
    mask.scatter(torch.tensor([0.0, 0.25, 0.5]))
    assert mask.gate.tolist() == [0.5, 0.0, 1.0, 0.25]
    masked = mask(weight)
    assert torch.equal(masked, weight * torch.tensor([0.5, 0.0, 1.0, 0.25]).view(1, 4, 1, 1))
    masked.backward(upstream)
    factor = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 4, 1, 1)
    assert torch.equal(weight.grad, upstream * factor)


@pytest.mark.parametrize("method", [Feather(), Feather(p=2.5), ST3()], ids=str)
def test_units_of_one_weight_are_masked_as_weights_bit_for_bit(method: Method) -> None:
    torch.manual_seed(0)
    by_weight = torch.randn(200, 1, requires_grad=True)
    by_unit = by_weight.detach().clone().requires_grad_()
    weights = WeightMask("w", by_weight, method, closed_gradient=0.0)
    weights.threshold.fill_(0.6)  # without the refresh: ST-3's factor differs by granularity
    units = UnitMask("w", 0, torch.arange(200))
    magnitude = by_unit.detach().square().mean(1).sqrt()
    units.scatter(method.gate(magnitude, torch.tensor(0.6)))
    upstream = torch.randn(200, 1)
    weights(by_weight).backward(upstream)
    units(by_unit).backward(upstream)
    assert torch.equal(weights(by_weight), units(by_unit))
    assert torch.equal(by_weight.grad, by_unit.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_is_masked_in_its_own_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 25).to(dtype).requires_grad_()
    for method in (Feather(), ST3(sigma=True)):
        masks = Masks(method, Sparsity(0.8), "weight")
        mask = masks.add_weight_mask("w", weight)
        masks.refresh({"w": weight}, 0.8)
        masked = mask(weight)
        assert masked.dtype == dtype
        masked.sum().backward()
        magnitude = weight.abs().double()
        threshold = magnitude.flatten().sort().values[int(999 * 0.8)]
        assert torch.equal(masked == 0, magnitude <= threshold)


@pytest.mark.parametrize("method", [Feather(), ST3(), ST3(sigma=True)], ids=str)
def test_a_refresh_closes_exactly_the_share(method: Method) -> None:
    model = Masked(method, 0.9, "weight")
    for sparsity in (0.1, 0.5, 0.9):
        model.refresh(sparsity)
        masked = [
            model.fxprune.weight_masks["first-weight"](model.first.weight),
            model.fxprune.weight_masks["second-weight"](model.second.weight),
        ]
        assert sum(int((weight == 0).sum()) for weight in masked) == int((120 + 60 - 1) * sparsity) + 1
    model.refresh(0.0)
    assert torch.equal(model.fxprune.weight_masks["first-weight"](model.first.weight), model.first.weight)


@pytest.mark.parametrize("method", [Feather(), ST3()], ids=str)
def test_a_refresh_closes_the_units_of_the_smallest_scores(method: Method) -> None:
    model = Masked(method, 0.5, "channel")
    with torch.no_grad():
        for weight in (model.first.weight, model.norm.weight, model.second.weight.t()):
            weight[5:12] *= 1e-3
    model.refresh(0.3)  # floor(19 * 0.3) + 1 units
    masks = model.fxprune
    assert (masks.gates == 0).nonzero().flatten().tolist() == [5, 6, 7, 8, 9, 10] or int((masks.gates == 0).sum()) == 6
    assert set((masks.gates == 0).nonzero().flatten().tolist()) <= set(range(5, 12))
    assert torch.equal(masks.alive["norm"](), (masks.gates > 0).float())
    assert torch.equal(masks.unit_masks["second-weight"].gate > 0, masks.gates > 0)


def test_st3_rescales_units_by_one_factor_a_layer() -> None:
    model = Masked(ST3(), 0.5, "channel")
    model.refresh(0.5)
    masks, weight = model.fxprune, model.second.weight.detach()
    is_open = (masks.gates > 0).float()
    share = ((weight.abs() * is_open).mean() + 1e-6) / (weight.abs().mean() + 1e-6)
    torch.testing.assert_close(masks.unit_masks["second-weight"].gate, masks.gates * 1.01 / (share + 0.01))


def test_gates_can_be_set_by_hand() -> None:
    model = Masked(Feather(), 0.5, "channel")
    gates = torch.zeros(20)
    gates[3] = 0.5
    model.fxprune.set_gates(gates)
    masked = model.fxprune.unit_masks["second-weight"](model.second.weight)
    assert torch.equal(masked[:, 3], 0.5 * model.second.weight[:, 3])
    assert masked.count_nonzero() == 3
    assert torch.equal(model.fxprune.alive["norm"].open, (gates > 0).float())


def test_a_closed_unit_receives_no_gradient() -> None:
    model = Masked(Feather(), 0.5, "channel")
    gates = torch.ones(20)
    gates[:15] = 0
    model.fxprune.set_gates(gates)
    model(torch.randn(8, 6)).square().sum().backward()
    received = model.second.weight.grad.abs().sum(0), model.first.weight.grad.abs().sum(1)
    assert all((sums[15:] > 0).sum() >= 4 and not sums[:15].any() for sums in received)


@pytest.mark.parametrize(("method", "share", "granularity"), VARIANTS, ids=str)
def test_state_goes_through_a_state_dict_and_a_deepcopy(method: Method, share: float, granularity: str) -> None:
    model = Masked(method, share, granularity)
    model.refresh(share)
    model.fxprune.step += 7
    model.eval()
    x = torch.randn(4, 6)
    fresh = Masked(method, share, granularity).eval()
    assert not torch.equal(fresh(x), model(x))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert int(fresh.fxprune.step) == 7
    assert not [key for key in model.state_dict() if "index" in key or "slice" in key]  # those come from prepare
    copied = copy.deepcopy(model)
    model.refresh(0.1)
    assert torch.equal(copied(x), fresh(x))
    copied.refresh(share)
    assert torch.equal(copied(x), fresh(x))


@pytest.mark.parametrize(("method", "share", "granularity"), VARIANTS, ids=str)
def test_a_compiled_model_is_one_graph_and_follows_the_threshold(
    method: Method, share: float, granularity: str
) -> None:
    model = Masked(method, share, granularity)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(4, 6)
    for sparsity in (0.0, 0.3, share):
        model.refresh(sparsity)
        results = []
        for run in (model, compiled):
            model.zero_grad()
            output = run(x)
            output.sum().backward()
            results.append([output, *(each.grad for each in model.parameters() if each.grad is not None)])
        for plain, fused in zip(*results, strict=True):
            assert torch.equal(plain, fused)


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_autocast_masks_in_full_precision(granularity: str) -> None:
    model = Masked(Feather(), 0.5, granularity)
    model.refresh(0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(4, 6))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert model.second.weight.grad.dtype == torch.float32


def test_a_mask_saves_nothing_for_a_straight_gradient() -> None:
    weight = torch.randn(30, 20, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        refreshed_mask(Feather(), weight.detach(), 0.5)(weight)
        assert not saved
        masked = refreshed_mask(Feather(), weight.detach(), 0.5, theta=0.5)(weight)
    assert [tensor.numel() for tensor in saved] == [600, 1]  # what the op that uses it saves anyway, and the threshold
    assert saved[0].data_ptr() == masked.data_ptr()


def test_parameter_names_are_listed_once() -> None:
    assert Masked(Feather(), 0.5, "weight").fxprune.parameter_names == ["first.weight", "second.weight"]
    names = Masked(Feather(), 0.5, "channel").fxprune.parameter_names
    assert names == ["second.weight", "first.weight", "norm.weight"]


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(TargetError, match="'weight', 'stripe' or 'channel'"):
        Masks(Feather(), Sparsity(0.5), "row")  # type: ignore[arg-type]


def test_methods_without_penalty_add_a_zero() -> None:
    term = penalty(Masked(Feather(), 0.5, "channel"))
    assert term.shape == ()
    assert term == 0


def test_a_methods_penalty_gets_the_scales_of_the_batch_norms() -> None:
    class Slimming(Feather):
        def penalty(self, scales):  # type: ignore[no-untyped-def]
            return sum(scale.abs().sum() for scale in scales)

    model = Masked(Slimming(), 0.5, "channel")
    penalty(model).backward()
    assert torch.equal(model.norm.weight.grad, torch.ones(20))


def test_a_penalty_of_an_unprepared_model_is_refused() -> None:
    with pytest.raises(FxpruneError, match=r"Linear has no masks; give the model that fxprune\.prepare returned"):
        penalty(nn.Linear(2, 2))


def test_probabilities_of_zero_are_closed_though_they_are_more_than_the_target() -> None:
    model = Masked(ProbMask(), 0.5, "weight").eval()
    masks = {mask.parameter: mask for mask in model.fxprune.weight_masks.values()}
    for mask in masks.values():
        mask.variable.data.uniform_(0.1, 1).view(-1)[: int(0.7 * mask.variable.numel())] = 0
    model.refresh(0.5)
    for name, mask in masks.items():
        assert torch.equal(mask(model.get_parameter(name)) == 0, mask.variable == 0)


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_a_model_turned_to_half_keeps_thresholds_and_gates_in_full(granularity: str) -> None:
    model = Masked(Feather(), 0.5, granularity).half()
    model.refresh(0.5)
    kept = [buffer for buffer in model.fxprune.buffers() if buffer.is_floating_point()]
    assert {buffer.dtype for buffer in kept} == {torch.float32}
    assert model.eval()(torch.randn(4, 6).half()).dtype == torch.float16


@pytest.mark.parametrize("method", [Feather(), ST3()], ids=str)
def test_weights_of_one_dimension_are_masked_too(method: Method) -> None:
    weight = torch.tensor([0.5, -0.3, 0.1, -0.05])
    mask = refreshed_mask(method, weight, 0.2)
    assert (mask(weight) != 0).tolist() == [True, True, False, False]
    units = UnitMask("w", 0, torch.arange(4))
    units.scatter(torch.tensor([1.0, 0.0, 1.0, 1.0]))
    if method.rescales:
        units.rescale(weight, method)
    assert (units(weight) != 0).tolist() == [True, False, True, True]


def test_a_process_that_prepares_first_compiles_later() -> None:
    code = (
        "import warnings; warnings.simplefilter('error', UserWarning); import torch, fxprune; from torch import nn\n"
        "model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)); x = torch.randn(2, 3, 8, 8)\n"
        "prepared = fxprune.prepare(model, x, granularity='stripe')\n"
        "torch.compile(prepared, backend='eager', fullgraph=True)(x)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
