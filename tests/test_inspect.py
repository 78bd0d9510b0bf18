"""Does an inspection say what would be pruned, what not, and because of which line, and leave the model as it was?"""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from typer.testing import CliRunner, Result

import fxprune
from fxprune.cli import app
from fxprune.errors import FxpruneError, PatternError
from fxprune.inspection.picture import draw_graph
from fxprune.inspection.report import Group, Inspection, shorten

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.cumsum(x + self.second(x), 1)  # the line of the pin
        return self.last(x)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beside, self.on, self.last = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([x, self.beside(x)], 1) + self.on(x))


class ReadBothWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tensordot(self.first(x).relu(), self.table, dims=1).relu()
        return self.last(torch.tensordot(hidden, self.table.t(), dims=1).relu())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.hidden, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.cells(x)[0]).relu())


@pytest.fixture(scope="module")
def residual() -> Inspection:
    return fxprune.inspect(Residual(), IMAGES)


def find(inspection: Inspection, name: str) -> Group:
    (group,) = [group for group in inspection.groups if group.name == name]
    return group


def places(group: Group) -> dict[str, tuple[int, int]]:
    return {str(place): place.each for place in group.places}


def test_a_residual_stream_is_one_group_and_an_inner_width_another(residual: Inspection) -> None:
    stream, inner = residual.groups
    assert (stream.name, stream.units, inner.name, inner.units) == ("stem", 8, "inner", 6)
    assert places(stream).keys() == {
        "stem.weight[0]", "bn.weight[0]", "bn.bias[0]", "bn.running_mean[0]", "bn.running_var[0]",
        "inner.weight[1]", "outer.weight[0]", "outer.bias[0]", "head.weight[1]",
    }  # fmt: skip
    assert places(inner).keys() == {"inner.weight[0]", "inner.bias[0]", "outer.weight[1]"}
    assert stream.layers("rows") == ["stem", "outer"]
    assert stream.layers("columns") == ["inner", "head"]
    assert residual.units == 14
    assert (residual.prunable_rows, residual.rows) == (8 + 6 + 8, 8 + 6 + 8 + 4)


def test_shares_count_what_lies_on_the_slices(residual: Inspection) -> None:
    stream, inner = residual.groups
    total = sum(p.numel() for p in Residual().parameters())
    assert residual.parameters == total
    assert inner.parameters == pytest.approx((6 * 8 * 9 + 6 + 8 * 6) / total)
    assert stream.parameters == pytest.approx(1 - (6 + 4) / total)  # all but inner's and head's biases
    macs = 64 * (8 * 3 * 9 + 6 * 8 * 9 + 8 * 6) + 8 * 4
    assert residual.macs == macs == fxprune.export.count(Residual(), IMAGES).macs
    assert inner.macs == pytest.approx(64 * (6 * 8 * 9 + 8 * 6) / macs)
    assert stream.macs == pytest.approx(1.0)


def test_a_concatenated_part_has_its_share_of_what_reads_it() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(4, 6), nn.Linear(4, 2), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([self.a(x), self.b(x)], 1))

    small = find(fxprune.inspect(Dense(), torch.randn(3, 4)), "b")
    assert small.macs == pytest.approx((2 * 4 + 2 * 5) / (6 * 4 + 2 * 4 + 8 * 5))
    (read,) = [place for place in small.places if place.parameter == "last.weight"]
    assert (read.role, read.size, read.indexes, read.each) == ("columns", 8, 2, (1, 1))


def test_the_addition_ties_the_stream_and_its_line_is_named(residual: Inspection) -> None:
    stream, inner = residual.groups
    (join,) = [tie for tie in stream.ties if not tie.layer]
    assert (join.op, set(join.parameters)) == ("add", {"stem.weight", "outer.weight"})
    assert f"{Path(__file__).name}:{line_of('x = x + self.outer')}" in join.where
    assert all(tie.layer for tie in inner.ties)
    assert {tie.layer for tie in stream.ties} == {"", "stem", "bn", "inner", "outer", "head"} - {"stem"}


def test_heads_are_units_of_as_many_indexes_as_they_are_wide() -> None:
    heads = find(fxprune.inspect(Attention(), TOKENS), "attention")
    assert heads.units == 2
    assert places(heads)["attention.in_proj_weight[0]"] == (12, 12)  # 4 of query, of key, and of value
    assert places(heads)["attention.out_proj.weight[1]"] == (4, 4)
    assert heads.each == (4, 12)
    assert any("attention" in tie.op and tie.parameters == ("attention.in_proj_weight",) for tie in heads.ties)


def test_a_grouped_convolution_makes_units_of_one_channel_of_each_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    first, second = fxprune.inspect(model, IMAGES).groups
    assert (first.units, places(first)["0.weight[0]"]) == (4, (2, 2))
    assert (second.units, second.macs) == (4, pytest.approx((36 * 8 * 4 * 9 + 36 * 8 * 2) / find_macs(model)))


def test_depthwise_convolutions_and_hidden_layers_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1))
    (group,) = fxprune.inspect(model, IMAGES).groups
    assert group.macs == pytest.approx(1.0)
    recurrent = fxprune.inspect(Recurrent(), TOKENS)
    assert recurrent.macs == fxprune.export.count(Recurrent(), TOKENS).macs > 5 * (6 * 5 + 5 * 2)


def test_a_pin_names_its_line_and_all_rows_that_are_tied_to_it() -> None:
    inspection = fxprune.inspect(Summed(), IMAGES)
    pin, output = inspection.pinned
    assert "cumsum" in pin.reason
    assert f"{Path(__file__).name}:{line_of('# the line of the pin')}" in pin.where
    assert pin.rows == 12  # first's and second's, which are added
    assert (output.reason, output.rows) == ("an output of the model", 2)
    assert inspection.groups == ()
    assert (inspection.prunable_rows, inspection.rows) == (0, 14)
    assert str(pin) in {f"{p.reason} ({p.where})" for p in inspection.pinned}


def test_what_is_added_to_an_input_is_pinned_with_a_reason() -> None:
    inspection = fxprune.inspect(Joined(), IMAGES)
    (tied,) = [pin for pin in inspection.pinned if "tied to what is no channel" in pin.reason]
    assert tied.rows == 3
    assert Path(__file__).name in tied.where


def test_units_that_cannot_be_pruned_say_why() -> None:
    model = Residual()
    model.unused = nn.Linear(3, 5)
    inspection = fxprune.inspect(model, IMAGES, exclude=["inner"])
    reasons = {str(place): group.reason for group in inspection.groups for place in group.places}
    assert reasons["inner.weight[0]"] == reasons["stem.weight[0]"] == "excluded"
    assert "no contraction reads them" in reasons["unused.weight[0]"]
    assert inspection.units == 0
    both = fxprune.inspect(ReadBothWays(), torch.randn(2, 4))
    reason = both.groups[0].reason
    assert reason is not None
    assert "no mask can stand where tensordot reads them" in reason
    assert Path(__file__).name in reason


def test_it_finds_as_many_units_as_prepare() -> None:
    for model, inputs in ((Residual(), IMAGES), (Attention(), TOKENS), (Joined(), IMAGES), (Recurrent(), TOKENS)):
        assert fxprune.inspect(model, inputs).units == len(fxprune.prepare(model, inputs).fxprune.gates)


def test_parametrized_weights_are_listed_as_what_is_computed() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), weight_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 2))
    first, second = fxprune.inspect(model, torch.randn(2, 4)).groups
    assert places(first).keys() == {"0.weight[0]", "0.bias[0]", "2.weight[1]"}
    assert first.parameters == pytest.approx((8 * 4 + 8 + 6 * 8) / (8 * 4 + 8 + 6 * 8 + 6 + 2 * 6 + 2))
    assert places(second).keys() == {"2.weight[0]", "2.bias[0]", "4.weight[1]"}


def test_regions_are_inspected_where_the_whole_cannot_be_traced() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Residual(), Residual()
            self.alone = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            first = self.first(x)
            return self.second(x) if bool(first.sum() > 1e9) else first + self.second(x * 2)

    inspection = fxprune.inspect(Deciding(), IMAGES)
    assert [group.name for group in inspection.groups] == ["first.stem", "first.inner", "second.stem", "second.inner"]
    assert "the whole model" in inspection.untraced
    assert Path(__file__).name in inspection.untraced["the whole model"]
    assert "\n\nnot traced\n" in str(inspection)
    assert "\n\n\n" not in str(inspection)
    assert inspection.macs == 2 * fxprune.inspect(Residual(), IMAGES).macs
    half = sum(p.numel() for p in Residual().parameters())
    assert inspection.groups[1].parameters == pytest.approx((6 * 8 * 9 + 6 + 8 * 6) / (2 * half + 20))
    names = [layer.name for layer in inspection.layers]
    assert len(set(names)) == len(names) == 16
    assert {layer.name: layer.inputs for layer in inspection.layers}["second.add"] == ("second.stem", "second.outer")


def test_the_table_shows_groups_pins_and_reasons(residual: Inspection) -> None:
    shown = str(residual)
    assert "14 prunable units in 2 groups; 22 of 26 rows" in shown
    (line,) = [line for line in shown.splitlines() if line.lstrip().startswith("0  ")]
    assert [part.strip() for part in line.split("  ") if part.strip()][5:7] == ["stem, outer", "inner, head"]
    assert f"add (tests/test_inspect.py:{line_of('x = x + self.outer')})" in line
    assert "an output of the model" in shown
    assert "cannot be pruned because" not in shown
    assert "not traced" not in shown
    assert "excluded" in str(fxprune.inspect(Residual(), IMAGES, exclude=["inner"]))
    missing = dataclasses.replace(residual, untraced={"heads": "it decides by values"})
    assert str(missing).endswith("not traced\nheads: it decides by values")


def test_long_lists_are_abbreviated_in_the_table_only() -> None:
    layers = [layer for _ in range(110) for layer in (nn.Linear(4, 4), nn.ReLU())]
    inspection = fxprune.inspect(nn.Sequential(*layers), torch.randn(2, 4))
    assert len(inspection.groups) == 109
    assert "\n... and 9 more (JSON has all)" in str(inspection)
    assert len(json.loads(inspection.to_json())["groups"]) == 109


def test_json_has_every_field(residual: Inspection) -> None:
    read = json.loads(residual.to_json())
    assert read == json.loads(json.dumps(dataclasses.asdict(residual)))
    assert read["untraced"] == {}
    assert read["groups"][0]["places"][0] == {
        "parameter": "stem.weight", "dim": 0, "role": "rows", "size": 8, "indexes": 8, "each": [1, 1],
    }  # fmt: skip


def test_the_picture_has_layers_joins_and_the_groups_in_colour(residual: Inspection, tmp_path: Path) -> None:
    residual.write_picture(tmp_path / "graph.dot")
    text = (tmp_path / "graph.dot").read_text()
    assert text == draw_graph(fxprune.inspect(Residual(), IMAGES))  # the same each time
    assert "stem: 8 units" in text
    assert "inner: 6 units" in text
    assert "stem conv2d\\n2 x 8 x 8 x 8\\ngroup 0" in text
    names = [layer.name for layer in residual.layers]
    assert names == ["x", "stem", "inner", "outer", "add", "mean", "head", "output"]
    drawn = {layer.name: layer for layer in residual.layers}
    assert drawn["add"].inputs == ("stem", "outer")
    assert [drawn[name].groups for name in ("x", "stem", "inner", "add", "head")] == [(), (0,), (1,), (0,), (-1,)]
    colours = {
        line.rpartition("fillcolor=")[2] for line in text.splitlines() if "group" in line and "fillcolor" in line
    }
    assert len(colours) == 2


def test_a_concatenation_has_the_colours_of_its_parts(tmp_path: Path) -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(4, 6), nn.Linear(4, 2), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([self.a(x), self.b(x)], 1))

    text = draw_graph(fxprune.inspect(Dense(), torch.randn(3, 4)))
    (node,) = [line for line in text.splitlines() if '"cat\\n' in line]
    assert "groups 0, 1" in node
    assert "striped" in node


def test_pictures_are_rendered_where_graphviz_is_installed(
    residual: Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FxpruneError, match=r"not installed; install graphviz, or write graph\.dot"):
        residual.write_picture(tmp_path / "graph.svg")
    with pytest.raises(FxpruneError, match=r"pictures are written as \.dot, \.svg, \.png"):
        residual.write_picture(tmp_path / "graph.jpeg")
    program = tmp_path / "dot"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nopen(sys.argv[3], 'w').write(sys.argv[1] + sys.stdin.read())\n"
    )
    program.chmod(0o755)
    residual.write_picture(tmp_path / "graph.svg")
    assert (tmp_path / "graph.svg").read_text() == "-Tsvg" + draw_graph(residual)
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('syntax error')\n")
    with pytest.raises(FxpruneError, match=r"could not draw it \(syntax error"):
        residual.write_picture(tmp_path / "graph.png")


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    model = Residual().train()
    model.bn.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = set(vars(model))
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    fxprune.inspect(model)  # the input is guessed
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in (model, model.stem, model.bn)] == [True, True, False]
    assert set(vars(model)) == attributes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_prepare_refuses_is_refused() -> None:
    with pytest.raises(FxpruneError, match="prepared already"):
        fxprune.inspect(fxprune.prepare(Residual(), IMAGES), IMAGES)
    with pytest.raises(PatternError, match="matches no module"):
        fxprune.inspect(Residual(), IMAGES, exclude=["layer9"])
    with pytest.raises(FxpruneError, match=r"torch.nn.Module"):
        fxprune.inspect("resnet50")  # type: ignore[arg-type]


def test_source_lines_lose_all_folders_but_the_last() -> None:
    assert shorten("layer a.b, /x/lib/models/net.py:3 in forward") == "layer a.b, models/net.py:3 in forward"
    assert shorten("why (/x/lib/models/net.py:3 in forward)") == "why (models/net.py:3 in forward)"
    assert shorten("an input of the model") == "an input of the model"


MODELS = """
import torch
from torch import nn

ready = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

def make_net():
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))

def make_text():
    return "no module"

def make_with(width):
    return nn.Linear(width, width)
"""


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "models_of_" + tmp_path.name.replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODELS)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def assert_refused(result: Result, sentence: str) -> None:
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_the_command_inspects_a_function_of_the_working_folder(own_models: str, tmp_path: Path) -> None:
    result = invoke(f"{own_models}:make_net", "--json", tmp_path / "all.json", "--picture", tmp_path / "graph.dot")
    assert result.exit_code == 0, result.output
    assert "14 prunable units in 2 groups" in result.stdout
    assert json.loads((tmp_path / "all.json").read_text())["model"] == "Sequential"
    assert (tmp_path / "graph.dot").read_text().startswith("digraph")
    assert "8 prunable units" in invoke(f"{own_models}:ready", "--input", "2x4").stdout
    assert "excluded" in invoke(f"{own_models}:make_net", "--input", "2x7", "--exclude", "1").stdout


def test_the_command_inspects_a_model_of_torchvision() -> None:
    result = invoke("torchvision:squeezenet1_1", "--input", "1x3x64x64")
    assert result.exit_code == 0, result.output
    assert "SqueezeNet: 1,235,496 parameters" in result.stdout


def test_the_command_refuses_names_in_a_sentence(own_models: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(invoke("resnet50"), "give torchvision:NAME, timm:NAME or package.module:function")
    assert_refused(invoke("keras:resnet50"), "no module 'keras'; give torchvision:NAME")
    assert_refused(invoke("torchvision:resnet51"), "did you mean resnet")
    assert_refused(invoke(f"{own_models}_broken:make"), "needs 'no_such_package', which is not installed")
    assert_refused(invoke(f"{own_models}:make_nets"), "did you mean make_net")
    assert_refused(invoke(f"{own_models}:MODELS_"), "is not there")
    assert_refused(invoke(f"{own_models}:make_text"), "gives a str; it must return a torch.nn.Module")
    assert_refused(invoke(f"{own_models}:make_with"), "could not be made without arguments (TypeError")
    monkeypatch.setitem(sys.modules, "timm", None)
    assert_refused(invoke("timm:resnet50"), "pip install timm")


def test_the_command_suggests_models_of_timm() -> None:
    pytest.importorskip("timm")
    assert_refused(invoke("timm:resnet51"), "did you mean resnet")


def test_the_command_refuses_inputs_and_files_in_a_sentence(
    own_models: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{own_models}:ready"
    for size in ("2x", "2x0", "2,4", "-1x4", "2xfour"):
        assert_refused(invoke(name, f"--input={size}"), f"--input {size}: give whole numbers from 1")
    assert_refused(invoke(name, "--input", "2x5"), "does not run on the example inputs")
    assert_refused(invoke(name, "--json", tmp_path / "no" / "all.json"), "cannot be written")
    assert_refused(invoke(name, "--picture", "graph.pdf"), "give a name that ends so")
    assert_refused(invoke(name, "--exclude", "layer9"), "matches no module")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_refused(invoke(name, "--picture", "graph.png"), "`dot`, which draws it, is not installed")


def line_of(text: str) -> int:
    """The first line of this file that contains a text."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def find_macs(model: nn.Module) -> int:
    return fxprune.export.count(model, IMAGES).macs
