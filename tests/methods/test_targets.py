"""Is what was asked for what conversion leaves, counted on the compact model?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, PatternError, TargetError
from fxprune.methods.targets import Target
from fxprune.methods.unit_costs import Choice, Steps, Term, UnitCosts, group_units
from fxprune.methods.weight_costs import WeightCosts
from fxprune.model import PreparedModel
from fxprune.passes.bake_masks import bake_masks
from tests.costs import costs_of, open_units
from tests.exactness import close_units, randomise


class Residual(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.ReLU(),
                nn.Conv2d(2 * width, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * 3 * 3, 40),
        nn.ReLU(),
        nn.Linear(40, 5),
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 1),
        nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 1),
        nn.ReLU(),
        nn.Conv2d(64, 32, 3, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 4, 3),
    )


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(48, 6, 96, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(
        nn.Linear(10, 48), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(48, 7)
    )


IMAGES, TOKENS = (2, 3, 10, 10), (2, 9, 10)
NETWORKS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (plain, IMAGES),
    (Residual, IMAGES),
    (depthwise, IMAGES),
    (transformer, TOKENS),
]
networks = pytest.mark.parametrize(("make", "shape"), NETWORKS, ids=[make.__name__ for make, _ in NETWORKS])


def build(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = make()
    randomise(model, seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # units of one layer are to differ: their order is what the threshold looks at
            parameter.data *= torch.rand([len(parameter), *[1] * (parameter.dim() - 1)]) + 0.5
    return model


def run_schedule(model: nn.Module, inputs: Tensor, target: Target, granularity: str = "channel") -> PreparedModel:
    prepared = fxprune.prepare(model, inputs, target=target, granularity=granularity)
    scheduler = fxprune.Scheduler(prepared, total_steps=6)
    for _ in range(6):
        scheduler.step()
    return prepared


def count_cost(model: nn.Module, inputs: Tensor, target: Target) -> int:
    cost = fxprune.export.count(model, inputs)
    return cost.parameters if target.cost == "parameters" else cost.macs * len(inputs)


def price_of_a_block(costs: UnitCosts, left: Tensor) -> int:
    """The most that the last block can have taken away."""
    return max(int(costs.cost(left + row) - costs.cost(left)) for row in torch.diag(costs.quantum))


@networks
@pytest.mark.parametrize("target", [fxprune.Params(remaining=0.5), fxprune.Macs(remaining=0.5)], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_conversion_leaves_just_what_random_gates_are_predicted_to_cost(
    make: Callable[[], nn.Module], shape: tuple[int, ...], target: Target, seed: int
) -> None:
    inputs = torch.randn(shape)
    model = build(make, seed)
    prepared = fxprune.prepare(model, inputs, target=target)
    costs = costs_of(prepared)
    assert costs.total == int(costs.cost(costs.size)) == count_cost(model, inputs, target)
    gates = close_units(prepared, 0.5, seed)
    for group in range(len(costs.size)):  # of a group that is empty conversion keeps a unit of its own choice
        gates[(costs.group == group).nonzero()[0]] = 1
    prepared.fxprune.set_gates(gates)
    left = int(costs.cost(open_units(prepared)))
    assert left < costs.total
    assert count_cost(fxprune.convert(prepared), inputs, target) == left


@networks
@pytest.mark.parametrize("kind", [fxprune.Params, fxprune.Macs])
@pytest.mark.parametrize("remaining", [0.3, 0.7])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("align", [1, 4])
def test_the_compact_model_has_what_was_asked_for(
    make: Callable[[], nn.Module], shape: tuple[int, ...], kind: type, remaining: float, scope: str, align: int
) -> None:
    inputs = torch.randn(shape)
    model = build(make)
    target = kind(remaining=remaining, scope=scope, align=align)
    prepared = run_schedule(model, inputs, target)
    costs, left = costs_of(prepared), open_units(prepared)
    asked = remaining * count_cost(model, inputs, target)
    reached = count_cost(fxprune.convert(prepared), inputs, target)
    assert reached <= asked
    assert asked - reached <= max(0.01 * asked, price_of_a_block(costs, left))
    assert ((left % costs.quantum == 0) | (left == costs.size)).all()


@networks
@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_just_the_asked_share_of_the_units_closes(
    make: Callable[[], nn.Module], shape: tuple[int, ...], share: float, scope: str
) -> None:
    prepared = run_schedule(build(make), torch.randn(shape), fxprune.Sparsity(share, scope=scope))
    gates, size = prepared.fxprune.gates, costs_of(prepared).size
    assert int((gates == 0).sum()) == int((len(gates) - 1) * share) + 1
    if scope == "layer":
        closed = size - open_units(prepared)
        assert ((closed - share * size).abs() <= 1).all()


def test_the_target_is_approached_along_the_schedule() -> None:
    inputs = torch.randn(IMAGES)
    prepared = fxprune.prepare(build(Residual), inputs, target=fxprune.Macs(remaining=0.4))
    costs = costs_of(prepared)
    scheduler = fxprune.Scheduler(prepared, total_steps=8)
    for step in range(1, 9):
        scheduler.step()
        ramp = 1 - (1 - min(step / 4, 1)) ** 3
        left = int(costs.cost(open_units(prepared)))
        allowed = price_of_a_block(costs, open_units(prepared))
        assert 0 <= (1 - 0.6 * ramp) * costs.total - left <= allowed


def test_widths_are_multiples_of_indexes_and_heads_count_as_many() -> None:
    prepared = run_schedule(build(transformer), torch.randn(TOKENS), fxprune.Macs(remaining=0.5, align=8))
    compact = fxprune.convert(prepared)
    assert {8 // int(q) for q in costs_of(prepared).quantum} == {1, 8}  # a head has 8 indexes: any number of heads
    for module in compact.modules():
        if isinstance(module, nn.Linear):
            assert module.in_features % 8 == 0 or module.in_features == 10
            assert module.out_features % 8 == 0 or module.out_features == 7


def test_a_floor_of_units_stays() -> None:
    inputs = torch.randn(IMAGES)
    for least in (1, 5):
        model = build(plain)
        with torch.no_grad():
            model[2].weight *= 1e-3 * torch.rand(48, 1, 1, 1)
        prepared = run_schedule(model, inputs, fxprune.Params(remaining=0.2, least=least))
        assert (open_units(prepared) >= least).all()
        assert fxprune.convert(prepared).get_submodule("2").out_channels >= least


def test_without_a_floor_a_whole_branch_may_go() -> None:
    torch.manual_seed(0)
    model = build(Residual)
    with torch.no_grad():  # no layer is normalised by its mean when scores are given by hand
        prepared = fxprune.prepare(model, torch.randn(IMAGES), target=fxprune.Sparsity(0.4, least=0))
        costs = costs_of(prepared)
        scores = torch.rand(len(costs.group)) + torch.where(costs.group == 1, 0.0, 1.0)
        choice = costs.choose(scores, 0.4)
    is_open = choice.magnitudes > choice.thresholds
    assert not is_open[costs.group == 1].any()
    assert int((~is_open).sum()) == int((len(scores) - 1) * 0.4) + 1


def test_an_override_holds_for_the_layers_it_names_and_the_target_for_the_whole() -> None:
    inputs = torch.randn(IMAGES)
    for target in (
        fxprune.Macs(remaining=0.5, overrides={"blocks.*.0": 0.5, "blocks.0.0": 0.75}),
        fxprune.Params(remaining=0.5, overrides={lambda name, module: name == "blocks.0.0": 0.75}),
        fxprune.Sparsity(0.4, overrides={"blocks.0.0": 0.25}),
    ):
        prepared = run_schedule(build(Residual), inputs, target)
        compact = fxprune.convert(prepared)
        assert compact.blocks[0][0].out_channels == 36  # of 48
        if "blocks.*.0" in target.overrides:
            assert compact.blocks[1][0].out_channels == 24
        costs = costs_of(prepared)
        left = int(costs.cost(open_units(prepared)))
        assert 0 <= costs.limit(target.share) - left <= price_of_a_block(costs, open_units(prepared))


def test_overrides_follow_the_schedule_too() -> None:
    costs = UnitCosts(100, fxprune.Sparsity(0.5), own=torch.full((100,), 0.8))
    choice = costs.choose(torch.rand(100), 0.25)  # half of the way
    assert int((choice.magnitudes <= choice.thresholds).sum()) == 40


def test_parameters_that_nothing_reads_are_gone_in_the_compact_model() -> None:
    inputs = torch.randn(IMAGES)
    model = build(Residual)
    model.unused = nn.Linear(100, 70)
    target = fxprune.Params(remaining=0.6)
    prepared = run_schedule(model, inputs, target)
    costs = costs_of(prepared)
    assert costs.total - int(costs.cost(costs.size)) == 7070
    reached = count_cost(fxprune.convert(prepared), inputs, target)
    assert 0 <= 0.6 * costs.total - reached <= price_of_a_block(costs, open_units(prepared))


class Auxiliary(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(24, 90)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = super().forward(x)
        return (out, self.auxiliary(self.stem(x).mean((2, 3)))) if self.training else out


def test_what_only_training_runs_costs_nothing() -> None:
    inputs = torch.randn(IMAGES)
    prepared = fxprune.prepare(build(Auxiliary), inputs, target=fxprune.Macs(remaining=0.5))
    assert costs_of(prepared).total == count_cost(build(Residual), inputs, fxprune.Macs(remaining=0.5))


def test_a_pattern_that_matches_nothing_or_nothing_prunable_is_refused() -> None:
    inputs = torch.randn(IMAGES)
    with pytest.raises(PatternError, match="overrides='layer9' matches no module"):
        fxprune.prepare(Residual(), inputs, target=fxprune.Macs(remaining=0.5, overrides={"layer9": 0.5}))
    with pytest.raises(TargetError, match="nothing of these layers can be pruned"):
        fxprune.prepare(Residual(), inputs, target=fxprune.Macs(remaining=0.5, overrides={"head": 0.5}))


@pytest.mark.parametrize("kind", [fxprune.Params, fxprune.Macs])
def test_a_target_out_of_reach_is_refused_with_what_can_be_reached(kind: type) -> None:
    inputs = torch.randn(IMAGES)
    with pytest.raises(TargetError, match=r"remain \(([\d,]+) of [\d,]+; at least 6 of each") as refusal:
        fxprune.prepare(Residual(), inputs, target=kind(remaining=0.01, least=6))
    share = float(str(refusal.value).partition("may close ")[2].partition("%")[0]) / 100
    prepared = run_schedule(build(Residual), inputs, kind(remaining=share + 1e-4, least=6))
    assert (open_units(prepared) == 6).all()
    with pytest.raises(TargetError, match="cannot be reached"):
        fxprune.prepare(Residual(), inputs, target=kind(remaining=share - 1e-4, least=6))


def test_an_override_beyond_the_floor_is_refused() -> None:
    target = fxprune.Macs(remaining=0.5, least=20, overrides={"blocks.0.0": 0.25})
    with pytest.raises(TargetError, match=r"blocks\.0\.0.* 12 of 48 .* at least 20"):
        fxprune.prepare(Residual(), torch.randn(IMAGES), target=target)


@pytest.mark.parametrize("granularity", ["channel", "weight", "stripe"])
def test_overrides_that_close_more_than_the_target_are_refused(granularity: str) -> None:
    options = {"granularity": granularity, "method": fxprune.GMP()}
    for target in (fxprune.Sparsity(0.5, overrides={"*": 0.9}), fxprune.Params(0.5, overrides={"blocks.*": 0.2})):
        with pytest.raises(
            TargetError, match=r"the overrides alone leave [\d.]+% of the (gates|parameters), fewer than"
        ):
            fxprune.prepare(Residual(), torch.randn(IMAGES), target=target, **options)
    just = fxprune.Sparsity(0.5, overrides={"*": 0.5})
    prepared = fxprune.prune(Residual(), torch.randn(IMAGES), target=just, **options)
    assert fxprune.convert(prepared).report.masked == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("method", [fxprune.Feather(), fxprune.Feather(p=float("inf")), fxprune.ST3()], ids=str)
def test_ties_close_just_as_many(value: float, method: fxprune.Feather) -> None:
    costs = UnitCosts(40, fxprune.Sparsity(0.5), [torch.arange(30), torch.arange(30, 40)])
    scores = torch.full((40,), value)
    scores[35:] = 2.0
    choice = costs.choose(scores, 0.5)
    gates = method.gate(choice.magnitudes, choice.thresholds)
    assert int((gates == 0).sum()) == 20
    assert (gates[35:] > 0).all()


def test_thresholds_are_one_wherever_one_will_do() -> None:
    torch.manual_seed(0)
    costs = UnitCosts(40, fxprune.Sparsity(0.5), [torch.arange(30), torch.arange(30, 40)])
    scores = torch.rand(40)
    choice = costs.choose(scores, 0.5)
    assert torch.equal(choice.magnitudes, scores)
    assert torch.equal(choice.thresholds, choice.threshold.expand(40))
    assert torch.equal(choice.threshold, scores.sort().values[19])
    aligned = UnitCosts(40, fxprune.Sparsity(0.5, align=8), [torch.arange(30), torch.arange(30, 40)])
    choice = aligned.choose(scores, 0.5)
    is_open = choice.magnitudes > choice.thresholds
    assert [int(is_open[:30].sum()), int(is_open[30:].sum())] in ([8, 10], [8, 8], [16, 0])
    assert torch.equal(choice.magnitudes, scores)
    assert (choice.thresholds <= choice.threshold).all()


def choose_by_hand(costs: UnitCosts, scores: Tensor, share: float) -> Tensor:
    """Close one unit after another, by score, until the cost is within the limit."""
    is_open = torch.ones(len(scores), dtype=torch.bool)
    for unit in scores.argsort(stable=True).tolist():
        left = torch.bincount(costs.group[is_open], minlength=len(costs.size))
        if int(costs.cost(left)) <= costs.limit(share):
            return is_open
        if left[costs.group[unit]] > costs.target.least:
            is_open[unit] = False
    return is_open


@pytest.mark.parametrize("seed", range(10))
def test_the_search_finds_what_closing_one_by_one_finds(seed: int) -> None:
    torch.manual_seed(seed)
    rows, columns, other = torch.arange(50), torch.arange(50, 90), torch.arange(90, 100)
    terms = [Term(9, (rows, columns)), Term(2, (columns.repeat(2), other)), Term(5, (torch.tensor([-1, 3, -1]),))]
    costs = UnitCosts(100, fxprune.Params(remaining=0.5, least=seed % 4), [rows, columns, other], terms)
    assert int(costs.cost(costs.size)) == 9 * 50 * 40 + 2 * 80 * 10 + 15
    for share in torch.rand(5).mul(0.5).tolist():
        scores = torch.rand(100, dtype=torch.float64)
        choice: Choice = costs.choose(scores, share)
        assert torch.equal(choice.magnitudes > choice.thresholds, choose_by_hand(costs, scores, share))


def stepped_costs(**arguments: int) -> UnitCosts:
    """60 rows and 40 columns; a table of what both cost together by blocks of 16 and 8, and twice the rows."""
    rows, columns = torch.arange(60), torch.cat([torch.tensor([-1]), torch.arange(60, 100)])
    table = torch.arange(5)[:, None] * 100 * torch.arange(7) ** 2
    terms = [Term(table, (), (Steps(rows, 16), Steps(columns, 8)), "both"), Term(2, (rows,), name="rows")]
    return UnitCosts(100, fxprune.Macs(remaining=0.5, **arguments), [rows, columns], terms)


def test_a_table_is_read_at_the_next_step() -> None:
    costs = stepped_costs()
    assert int(costs.total) == 4 * 100 * 36 + 120
    left = torch.tensor([[60, 40], [48, 39], [49, 40], [16, 7], [1, 0], [0, 40]])
    assert costs.cost(left).tolist() == [14520, 3 * 2500 + 96, 4 * 3600 + 98, 132, 102, 0]
    assert costs.list_shares(left[1]) == pytest.approx(
        {"both": 7500 / 7596, "rows": 96 / 7596, "what no width changes": 0}
    )


def test_a_measurement_adds_what_no_width_changes() -> None:
    costs = stepped_costs()
    left, half = torch.tensor([48, 39]), costs.cost(costs.size) // 2
    for measured in (0.7, 0.4, 0.55):
        costs.calibrate(left, measured)
        assert int(costs.cost(left)) / int(costs.total) == pytest.approx(measured, abs=1e-3)
        assert int(costs.cost(costs.size)) == int(costs.total)
    costs.calibrate(left, 7596 / 14520)
    assert int(costs.constant) == 0
    assert int(costs.cost(costs.size)) // 2 == int(half)


def test_blocks_that_go_beyond_are_exchanged_for_smaller_ones() -> None:
    costs, in_order = stepped_costs(align=4), stepped_costs(align=4)
    in_order.is_measured = False
    gained = []
    for seed in range(8):
        scores = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        reached = []
        for each in (in_order, costs):
            choice = each.choose(scores, 0.4)
            is_open = choice.magnitudes > choice.thresholds
            for mine in (costs.group == 0, costs.group == 1):
                assert scores[mine & ~is_open].max() < scores[mine & is_open].min()
            reached.append(int(costs.cost(torch.bincount(costs.group[is_open], minlength=2))))
        assert reached[0] <= reached[1] <= int(costs.limit(0.4))
        gained.append(reached[1] - reached[0])
    assert max(gained) > 0.05 * int(costs.total)


def test_units_of_one_group_stand_at_the_same_places_equally_often() -> None:
    places = [torch.tensor([0, 1, 2, 3, -1]), torch.tensor([2, 3, 4]), torch.tensor([0, 0, 1, 1, 2, 3])]
    assert group_units(6, places).tolist() == [0, 0, 1, 1, 2, 3]


def test_scores_that_are_no_numbers_are_refused() -> None:
    costs = UnitCosts(3, fxprune.Sparsity(0.5))
    with pytest.raises(FxpruneError, match="1 of 3 are NaN or infinite"):
        costs.choose(torch.tensor([1.0, float("nan"), 2.0]), 0.5)


@pytest.mark.parametrize("arguments", [{"scope": "net"}, {"align": 0}, {"least": -1}, {"overrides": {"a": 2}}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, object]) -> None:
    for kind in (fxprune.Sparsity, fxprune.Params, fxprune.Macs):
        with pytest.raises(TargetError, match=next(iter(arguments))):
            kind(0.5, **arguments)


@pytest.mark.parametrize("remaining", [0, 1, -0.5, "half", True])
def test_what_remains_is_a_share(remaining: object) -> None:
    for kind in (fxprune.Params, fxprune.Macs):
        with pytest.raises(TargetError, match="between 0 and 1, both excluded"):
            kind(remaining=remaining)


def count_used(model: nn.Module, prepared: PreparedModel, inputs: Tensor, target: Target) -> int:
    """What is not zero, counted layer by layer with hooks: parameters, or weights times how often they are used."""
    baked = bake_masks(prepared)
    if target.cost == "parameters":
        return sum(int((parameter != 0).sum()) for parameter in baked.parameters())
    total = 0

    def count_layer(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        open_weights = int((baked.get_parameter(f"{names[layer]}.weight") != 0).sum())
        positions = args[0] if isinstance(layer, nn.ConvTranspose2d) else output
        channels = layer.in_channels if isinstance(layer, nn.ConvTranspose2d) else len(layer.weight)
        total += open_weights * (positions.numel() // channels)

    names = {module: name for name, module in model.named_modules()}
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count_layer) for layer in layers]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return total


CONVOLUTIONAL = [(make, shape) for make, shape in NETWORKS if make is not transformer]


@pytest.mark.parametrize(("make", "shape"), CONVOLUTIONAL, ids=[make.__name__ for make, _ in CONVOLUTIONAL])
@pytest.mark.parametrize("kind", [fxprune.Params, fxprune.Macs])
@pytest.mark.parametrize("granularity", ["weight", "stripe"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_weights_and_stripes_that_are_not_zero_are_what_was_asked_for(
    make: Callable[[], nn.Module], shape: tuple[int, ...], kind: type, granularity: str, scope: str
) -> None:
    inputs = torch.randn(shape)
    model = build(make)
    target = kind(remaining=0.7, scope=scope)
    prepared = run_schedule(model, inputs, target, granularity)
    costs = prepared.fxprune.costs
    assert isinstance(costs, WeightCosts)
    assert costs.total == count_cost(model, inputs, target)
    asked = 0.7 * costs.total
    reached = count_used(model, prepared, inputs, target)
    assert reached <= asked
    blocks = sum(costs.prices.values()) if scope == "layer" else max(costs.prices.values())
    assert asked - reached <= blocks


def test_weights_of_attention_meet_their_target_beside_products_without_weights() -> None:
    inputs = torch.randn(TOKENS)
    model = build(transformer)
    prepared = run_schedule(model, inputs, fxprune.Macs(remaining=0.5), "weight")
    costs = prepared.fxprune.costs
    masks = prepared.fxprune._weight_masks()
    assert costs.total == count_cost(model, inputs, costs.target)
    assert costs.total > sum(costs.prices[m.parameter] * prepared.get_parameter(m.parameter).numel() for m in masks)
    closed = {m.parameter: int((m(prepared.get_parameter(m.parameter)) == 0).sum()) for m in masks}
    assert 0 <= costs.sum_costs(closed) - 0.5 * costs.total <= max(costs.prices.values())


@pytest.mark.parametrize("granularity", ["weight", "stripe"])
def test_layers_of_weights_may_have_a_share_of_their_own(granularity: str) -> None:
    inputs = torch.randn(IMAGES)
    target = fxprune.Macs(remaining=0.49, overrides={"blocks.*": 0.8, "blocks.1.0": 0.1})
    prepared = run_schedule(build(Residual), inputs, target, granularity)
    costs, closed = prepared.fxprune.costs, {}
    for mask in prepared.fxprune._weight_masks():
        magnitudes = mask.measure(prepared.get_parameter(mask.parameter))
        closed[mask.parameter] = int((magnitudes.abs() <= mask.threshold).sum())
        share = 0.9 if mask.parameter == "blocks.1.0.weight" else 0.2 if "blocks" in mask.parameter else None
        if share is not None:
            assert abs(closed[mask.parameter] - share * magnitudes.numel()) <= 1
    assert 0 <= costs.sum_costs(closed) - 0.51 * costs.total <= max(costs.prices.values())


def test_weights_refuse_what_is_for_widths_and_what_is_out_of_reach() -> None:
    inputs = torch.randn(IMAGES)
    with pytest.raises(TargetError, match="align=8 is for widths"):
        fxprune.prepare(Residual(), inputs, target=fxprune.Sparsity(0.5, align=8), granularity="weight")
    with pytest.raises(TargetError, match="least=8 is for units"):
        fxprune.prepare(Residual(), inputs, target=fxprune.Sparsity(0.5, least=8), granularity="weight")
    target = fxprune.Params(remaining=0.4)
    with pytest.raises(
        TargetError, match=r"cannot be reached.* close 44\.35% of the parameters remain \(10,709 of 24,149"
    ):
        fxprune.prepare(Residual(), inputs, target=target, granularity="weight", exclude=["blocks.1.0"])
