"""Does a report say what was measured, in every form, and nothing else?"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import ReportError
from fxprune.export.measurements import LayerTime, OddWidth
from fxprune.export.quantize import QuantizedFile
from fxprune.export.report import read_log
from fxprune.reporting.comparison import Comparison
from fxprune.reporting.tables import list_tables


def test_layers_add_up_to_the_model(comparison: Comparison) -> None:
    dense, compact = comparison.networks
    assert [layer.name for layer in comparison.layers] == ["stem.0", "up", "head"]
    assert [layer.kind for layer in comparison.layers] == ["Conv2d 3x3", "ConvTranspose2d 2x2", "Linear"]
    assert [layer.width_before for layer in comparison.layers] == [16, 8, 5]
    assert comparison.layers[2].width_after == 5
    assert sum(layer.width_after or 0 for layer in comparison.layers[:2]) == 12
    assert sum(layer.macs_before for layer in comparison.layers) == dense.macs
    assert sum(layer.macs_after for layer in comparison.layers) == compact.macs
    rest = list_tables(comparison)[1].rows[-1]
    assert dense.parameters == sum(layer.weights_before for layer in comparison.layers) + int(rest[3].text.split()[0])


def test_a_layer_that_is_gone_or_split_says_so(comparison: Comparison) -> None:
    gone, split = (replace(comparison.layers[0], width_after=width) for width in (0, None))
    shown = list_tables(replace(comparison, layers=(gone, split)))[1].rows
    assert [row[2].text for row in shown[:2]] == ["16 → gone", "16 → split"]


def test_lowered_stripes_are_found_under_their_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    x = torch.randn(2, 3, 8, 8)
    prepared = fxprune.prune(model, x, granularity="stripe", target=fxprune.Sparsity(0.8))
    lowered = fxprune.lower_stripes(fxprune.convert(prepared))
    found = fxprune.export.report({"dense": model, "lowered": lowered}, x)
    assert sum(layer.macs_after for layer in found.layers) == found.networks[1].macs
    assert all(layer.weights_after > 0 for layer in found.layers)


def test_json_gives_the_same_report(comparison: Comparison, tmp_path: Path) -> None:
    assert Comparison.from_json(comparison.to_json()) == comparison
    comparison.write(tmp_path / "report.json")
    assert Comparison.from_json((tmp_path / "report.json").read_text()) == comparison


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', "\x00", '{"timings": []}'])
def test_other_json_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ReportError, match="no JSON of a fxprune report"):
        Comparison.from_json(text)


def test_a_value_of_another_kind_is_refused(comparison: Comparison) -> None:
    fields = json.loads(comparison.to_json())
    fields["networks"][0]["macs"] = "many"
    with pytest.raises(ReportError, match=r"no JSON of a fxprune report .*macs"):
        Comparison.from_json(json.dumps(fields))


def test_all_forms_say_the_same(comparison: Comparison, headline: tuple[str, ...], tmp_path: Path) -> None:
    for suffix in ("html", "md"):
        comparison.write(tmp_path / f"report.{suffix}")
        text = (tmp_path / f"report.{suffix}").read_text()
        assert [words for words in (*headline, "stem.0", "units went", "ONNX Runtime") if words not in text] == []
    assert all(words in str(comparison) for words in headline)
    assert "openvino was not measured: not <installed>" in str(comparison)


def test_names_are_never_read_as_markup(comparison: Comparison, tmp_path: Path) -> None:
    hostile = replace(comparison, model="<script>alert(1)</script>|*x*", commands=("<b>",))
    hostile.write(tmp_path / "report.html")
    hostile.write(tmp_path / "report.md")
    page, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "<script" not in page
    assert "<b>&" not in page
    assert "<script" not in markdown.replace("\\<script", "")


def test_the_page_refers_to_nothing_outside(comparison: Comparison, tmp_path: Path) -> None:
    comparison.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    names = {'xmlns="http://www.w3.org/2000/svg"', 'xmlns:xlink="http://www.w3.org/1999/xlink"'}
    for name in names:
        page = page.replace(name, "")
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert page.count("<svg") == 4
    assert not re.search(r"#0\d0\d0\d", page)  # every colour is the page's own


def test_what_is_not_known_is_left_out(comparison: Comparison, tmp_path: Path) -> None:
    bare = replace(comparison, benchmark=None, training=(), commands=(), conversion=None, layers=())
    bare = replace(bare, networks=tuple(replace(n, verification=None, accuracy=None) for n in bare.networks))
    bare.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<svg" not in page
    assert "accuracy" not in page
    assert [table.title for table in list_tables(bare)] == ["Side by side"]


def test_odd_widths_and_profiled_layers_have_tables(comparison: Comparison, tmp_path: Path) -> None:
    where = {"runtime": "ort-cpu", "threads": 1, "batch_size": 8, "name": "compact"}
    layer = LayerTime(
        **where, layer="stem.0", op="Conv", first_macs=400, macs=100, first_milliseconds=2.0, milliseconds=1.0
    )
    odd = OddWidth(**where, layer="stem.0", width=65, narrower=64, speedup=1.3)
    profiled = replace(comparison, benchmark=replace(comparison.benchmark, layers=(layer,), odd_widths=(odd,)))
    assert Comparison.from_json(profiled.to_json()) == profiled
    tables = {table.title: [[cell.text for cell in row] for row in table.rows] for table in list_tables(profiled)}
    measured = "compact, ort-cpu, 1 thread, batch 8"
    assert tables["Where time is lost"] == [["stem.0", measured, "400 → 100", "2.000 → 1.000", "0.50", "0.500"]]
    assert tables["Widths that cost more than their share"] == [["stem.0", measured, "65", "64", "1.3x"]]


def test_a_quantised_file_is_a_network_of_its_own() -> None:
    model, x = nn.Linear(8, 4), torch.randn(2, 8)
    file = QuantizedFile(
        Path("int8.onnx"), size=3000, size_before=9000, samples=64, agreement=0.98, accuracy=0.75, accuracy_before=0.8
    )
    found = fxprune.export.report({"dense": model, "compact": model}, x, files={"int8": file}, accuracy={"dense": 0.8})
    assert [network.name for network in found.networks] == ["dense", "compact", "int8"]
    last = found.networks[-1]
    assert (last.file_size, last.accuracy, last.parameters, last.verification) == (3000, 0.75, None, None)
    assert "75.00%" in str(found)


def test_a_log_counts_epochs_on_through_its_phases(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("phase,epoch,sparsity,accuracy\n1,1,0.0,0.5\n1,2,0.1,0.6\n2,1,0.5,\n2,2,0.5,0.7\n")
    assert [(p.epoch, p.sparsity, p.accuracy) for p in read_log(log)] == [
        (1, 0.0, 0.5),
        (2, 0.1, 0.6),
        (3, 0.5, None),
        (4, 0.5, 0.7),
    ]
    log.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ReportError, match="no column 'sparsity'"):
        read_log(log)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no epoch in it"),
        ("name,price\n", "there is no epoch in it"),
        ("epoch,sparsity\n1,50\n", "epoch 1 has 50 where shares lie between 0 and 1"),
        ("epoch,sparsity,accuracy\n1,0.5,91.2\n", "epoch 1 has 91.2"),
        ("epoch,sparsity\n1,nan\n", "epoch 1 has nan"),
    ],
)
def test_a_csv_that_is_no_log_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ReportError, match=reason):
        read_log(tmp_path / "log.csv")


def test_wrong_arguments_are_refused_in_sentences(comparison: Comparison, tmp_path: Path) -> None:
    model, x = nn.Linear(2, 2), torch.randn(2, 2)
    with pytest.raises(ReportError, match="at least two"):
        fxprune.export.report({"dense": model}, x)
    with pytest.raises(ReportError, match="accuracy names 'small'"):
        fxprune.export.report({"dense": model, "compact": model}, x, accuracy={"small": 1.0})
    with pytest.raises(ReportError, match=r"accuracy of 'dense' is 91\.0; give a share"):
        fxprune.export.report({"dense": model, "compact": model}, x, accuracy={"dense": 91.0})
    with pytest.raises(ReportError, match=r"give \.html or \.md or \.json"):
        comparison.write(tmp_path / "report.pdf")
    with pytest.raises(ReportError, match="cannot be written"):
        comparison.write(tmp_path / "none" / "report.md")
