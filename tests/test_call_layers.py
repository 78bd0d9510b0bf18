"""Layers of converted models are called as layers, so that hooks on them run; where they cannot be, nothing changes."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fxprune
from fxprune.compile_graph import find_layers
from fxprune.errors import FxpruneError
from fxprune.model import TracedModel
from tests.exactness import close_units, randomise

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)


class Net(nn.Module):
    """Layers of many kinds: with a stride, in groups, transposed, without a bias, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.twice = nn.Conv2d(8, 8, 1)
        self.scale = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.norm(self.stem(x)).relu())
        x = self.twice(self.twice(self.up(x)).relu())
        return self.head(self.scale(x.mean((2, 3))))


def listen(model: nn.Module) -> list[str]:
    """Write down the names of the layers that are called."""
    heard: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            module.register_forward_hook(lambda module, inputs, output, name=name: heard.append(name))
    return heard


def convert_net(model: nn.Module, x: Tensor) -> TracedModel:
    prepared = fxprune.prepare(model.eval(), x)
    close_units(prepared, 0.5)
    return fxprune.convert(prepared)


def test_hooks_on_layers_of_a_converted_model_run() -> None:
    model, x = Net(), torch.randn(2, 3, 16, 16)
    randomise(model)
    compact = convert_net(model, x)
    assert compact.stem.out_channels < 16
    heard = listen(compact)
    compact(x)
    assert heard == ["stem", "norm", "depthwise", "up", "twice", "twice", "scale", "head"]
    heard.clear()
    copied = copy.deepcopy(compact)
    copied(x)
    assert len(heard) == 8


def test_sizes_that_hooks_see_are_those_of_the_compact_model() -> None:
    model, x = Net(), torch.randn(2, 3, 16, 16)
    randomise(model)
    compact = convert_net(model, x)
    expected, macs = fxprune.export.count(compact, x[:1]).macs, 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal macs
        spread = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        macs += spread.numel() * module.weight[0].numel()

    for module in compact.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(count)
    compact(x[:1])
    assert macs == expected


def test_stripes_are_called_as_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
    with torch.no_grad():
        model[2].weight[:16, :, (0, 2)] = 0
    lowered = fxprune.lower_stripes(model, torch.randn(1, 3, 32, 32))
    heard = listen(lowered)
    lowered(torch.randn(1, 3, 32, 32))
    assert heard == ["0", "2.parts.0.0", "2.parts.1.0"]


def test_what_a_layer_does_not_compute_alone_stays_a_function() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), weight_norm(nn.Conv2d(4, 4, 1)), nn.Softmax(1)
    )
    prepared = fxprune.prepare(model.eval(), x, granularity="weight")
    called = list(find_layers(prepared.plain.regions[0].eval, prepared).values())
    assert called == [("1", False), ("2", True)]
    assert torch.allclose(prepared(x), model(x), atol=1e-6)


def test_instance_norms_are_called_with_fewer_channels() -> None:
    model, x = (
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 4, 1)),
        torch.randn(2, 3, 8, 8),
    )
    compact = convert_net(model, x)
    assert compact.get_submodule("1").num_features < 8
    called = list(find_layers(compact.graphs.regions[0].eval, compact).values())
    assert called == [("0", True), ("1", True), ("2", True)]


def test_functions_with_other_options_than_the_layer_stay() -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.conv.weight, self.conv.bias, (1, 1), (1, 1), (1, 1), 1)

    x = torch.randn(2, 3, 8, 8)
    traced = fxprune.convert(Wider().eval(), x)
    heard = listen(traced)
    with pytest.warns(UserWarning, match="the hook on conv does not run"):
        assert traced(x).shape == (2, 4, 8, 8)
    assert not heard


@pytest.mark.parametrize("granularity", ["weight", "stripe", "channel"])
def test_hooks_on_masked_layers_run_and_change_nothing(granularity) -> None:
    x = torch.randn(2, 3, 16, 16)
    model = Net()
    randomise(model)
    prepared = fxprune.prepare(model.eval(), x, granularity=granularity, target=fxprune.Sparsity(0.5))
    fxprune.prune(prepared)
    expected = prepared(x)
    x.requires_grad_()
    seen: list[Tensor] = []
    prepared.head.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    prepared.stem.register_full_backward_hook(lambda layer, *gradients: seen.append(gradients[1][0]))
    heard = listen(prepared)
    found = prepared(x)
    assert torch.equal(found, expected)
    assert heard == ["stem", "norm", "depthwise", "up", "twice", "twice", "scale", "head"]
    assert seen[0] is found
    found.sum().backward()
    assert seen[1].shape == (2, 16, 8, 8)
    assert all("forward" not in vars(module) for module in prepared.modules())
    handle = prepared.head.register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0],))
    changed = prepared(x)
    handle.remove()
    assert not torch.allclose(changed, expected)
    assert torch.equal(prepared(x), expected)


def test_a_hook_on_a_masked_layer_may_call_the_model() -> None:
    prepared, x = fxprune.prepare(Net().eval(), torch.randn(2, 3, 16, 16)), torch.randn(2, 3, 16, 16)
    expected, depth = prepared(x), 0

    def call_again(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            assert torch.equal(prepared(x), expected)
            assert copy.deepcopy(layer)(*inputs).shape == inputs[0].shape

    prepared.twice.register_forward_pre_hook(call_again)
    assert torch.equal(prepared(x), expected)
    assert depth == 5  # two calls each of the model, and the copy of the layer


def test_a_hook_may_give_a_masked_recurrent_layer_its_state() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)[0])

    model, x, state = Recurrent().eval(), torch.randn(2, 5, 6), torch.randn(1, 2, 8)
    prepared = fxprune.prepare(model, x)
    for each in (model, prepared):
        each.layer.register_forward_pre_hook(lambda layer, inputs: (*inputs, state))
    torch.testing.assert_close(prepared(x), model(x))


def test_hooks_on_all_modules_see_masked_layers() -> None:
    prepared, seen = fxprune.prepare(Net(), torch.randn(2, 3, 16, 16)), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        prepared(torch.randn(2, 3, 16, 16))
    finally:
        handle.remove()
    assert prepared.head in seen
    assert seen.count(prepared.twice) == 2


def test_hooks_on_the_model_stay_with_its_copies_and_conversions() -> None:
    model, x = Net(), torch.randn(2, 3, 16, 16)
    randomise(model)
    model.eval().register_forward_hook(lambda module, inputs, output: output.softmax(1))
    prepared = fxprune.prepare(model, x, target=fxprune.Sparsity(0.5))
    torch.testing.assert_close(prepared(x), model(x))
    prepared.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    fxprune.prune(prepared)
    assert torch.equal(copy.deepcopy(prepared)(x), prepared(x))
    compact = fxprune.convert(prepared)
    torch.testing.assert_close(compact(x), prepared(x))
    assert torch.equal(copy.deepcopy(compact)(x), compact(x))


def test_hooks_on_tied_layers_run_once_a_call() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    x = torch.randn(2, 8)
    traced = fxprune.convert(Tied().eval(), x)
    heard = listen(traced)
    traced(x)
    assert heard == ["first", "second"]


def test_errors_name_the_line_of_a_layer() -> None:
    x = torch.randn(2, 3, 16, 16)
    compact = convert_net(Net(), x)
    with pytest.raises(RuntimeError) as wrong:
        compact(torch.randn(2, 4, 16, 16))
    assert "stem" in wrong.value.__notes__[0]
    assert "test_call_layers.py" in wrong.value.__notes__[0]


class Doubled(nn.Conv2d):
    """Computes something else than its type says."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Wrapped(nn.Module):
    """A layer with an adapter beside it, as LoRA has it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.beside = layer, nn.Linear(layer.in_features, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.beside(x)


def widen(compact: TracedModel) -> None:
    compact.scale.eps = 0.5


def double(compact: TracedModel) -> None:
    old = compact.stem
    compact.stem = Doubled(3, old.out_channels, 3, stride=2, padding=1).double()


def wrap(compact: TracedModel) -> None:
    compact.head = Wrapped(compact.head).double()


@pytest.mark.parametrize("change", [widen, double, wrap])
def test_copies_follow_what_the_owner_makes_of_a_layer(change: Callable[[TracedModel], None], tmp_path: Path) -> None:
    model, x = Net().double(), torch.randn(2, 3, 16, 16).double()
    randomise(model)
    compact = convert_net(model, x)
    before = compact(x)
    change(compact)
    after = compact(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(copy.deepcopy(compact)(x), after)
    torch.testing.assert_close(copy.deepcopy(copy.deepcopy(compact))(x), after)
    torch.testing.assert_close(fxprune.convert(compact, x)(x), after)
    fxprune.export.to_onnx(compact.float(), x.float(), tmp_path / "changed.onnx")


@pytest.mark.parametrize("change", [widen, double, wrap])
@pytest.mark.parametrize("training", [False, True])
def test_what_goes_by_the_graph_refuses_layers_that_were_changed(
    change: Callable[[TracedModel], None], training: bool, tmp_path: Path
) -> None:
    model, x = Net().double().train(training), torch.randn(2, 3, 16, 16).double()
    compact = convert_net(model, x)
    fxprune.save(compact, tmp_path / "compact.safetensors")
    change(compact)
    name = {widen: "scale", double: "stem", wrap: "head"}[change]
    for refused in (
        lambda: fxprune.save(compact, tmp_path / "changed.safetensors"),
        lambda: fxprune.lower_stripes(compact),
    ):
        with pytest.raises(FxpruneError, match=rf"the layer {name} is not the one that .* before such a change"):
            refused()
    assert not (tmp_path / "changed.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda m: setattr(m.get_submodule("1"), "eps", 0.5), "1"),
        (lambda m: m.register_module("2", nn.GELU()), "2"),
        (lambda m: setattr(m.get_submodule("1"), "momentum", 0.5), None),
        (lambda m: setattr(m.get_submodule("5"), "p", 0.5), None),
    ],
)
def test_a_file_holds_modules_as_conversion_made_them(change, refused: str | None, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2),
            nn.Linear(8, 5),
        )  # fmt: skip

    x = torch.randn(2, 3, 16, 16)
    compact = convert_net(build(), x).eval()
    change(compact)
    if refused is not None:
        with pytest.raises(FxpruneError, match=f"the layer {refused} is not the one that .* undo the change"):
            fxprune.save(copy.deepcopy(compact), tmp_path / "file.safetensors")
        return
    fxprune.save(compact, tmp_path / "file.safetensors")
    assert torch.equal(fxprune.load(build(), tmp_path / "file.safetensors").eval()(x), compact(x))


def test_a_model_that_holds_a_method_of_its_own_is_copied() -> None:
    x = torch.randn(2, 3, 16, 16)
    compact = convert_net(Net(), x)
    compact.own = compact.forward
    copied = copy.deepcopy(compact)
    assert copied.own.__self__ is copied
    assert torch.equal(copied(x), compact(x))


class Queries(nn.Module):
    """A layer that is given a parameter, and nodes of the names that calls of masked layers might get."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, 8))
        self.first, self.second, self.first_layer = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        first_1_layer = self.first_layer(self.first(x).relu()).relu()
        return self.second(first_1_layer) + self.second(self.first(self.queries).relu()).sum(0)


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_layers_may_be_given_parameters_and_be_called_as_others_are_named(granularity: str) -> None:
    model, x = Queries(), torch.randn(3, 8)
    prepared = fxprune.prepare(model, x, granularity=granularity)
    for part in prepared.modules():
        part.register_forward_hook(lambda module, args, output: None)
    torch.testing.assert_close(prepared(x), model(x))
    compact = fxprune.convert(prepared)
    torch.testing.assert_close(compact(x), model(x))


class Recurrent(nn.Module):
    """A layer that is given a tuple of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.stem = nn.Parameter(torch.randn(8)), nn.Linear(4, 6)
        self.cell, self.head = nn.LSTMCell(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = self.start.expand(len(x), -1)
        out: Tensor = self.head(self.cell(self.stem(x), (start, start.cos()))[0])
        return out


def test_layers_may_be_given_tuples() -> None:
    model, x = Recurrent(), torch.randn(5, 4)
    prepared = fxprune.prepare(model, x)
    torch.testing.assert_close(prepared(x), model(x))
    torch.testing.assert_close(fxprune.convert(prepared)(x), model(x))
