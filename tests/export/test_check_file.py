"""Is every damaged or hostile file refused in a sentence, and every whole one accepted?"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import fxprune
from fxprune.errors import ExportError, FxpruneError
from fxprune.export import onnx as onnx_export
from fxprune.export import to_onnx, verify
from fxprune.export.check_file import DIGEST, check_file
from fxprune.export.runtimes.ort_cpu import OrtCpu
from tests.mutations import mutate


@pytest.fixture
def ours(block: nn.Module, tmp_path: Path) -> Path:
    return to_onnx(block, torch.randn(2, 3, 6, 6), tmp_path / "ours.onnx").path


@pytest.fixture
def foreign(ours: Path) -> Path:
    """The same graph, as another tool would have written it."""
    proto = onnx.load(ours)
    proto.producer_name = "pytorch"
    del proto.metadata_props[:]
    return write(ours.with_name("foreign.onnx"), proto)


def write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def test_whole_files_are_accepted(ours: Path, foreign: Path) -> None:
    check_file(ours)
    check_file(foreign)


def test_every_mutation_of_our_file_is_refused(ours: Path, block: nn.Module) -> None:
    for mutant in mutate(ours.read_bytes()):
        ours.write_bytes(mutant)
        with pytest.raises(ExportError, match=r"is damaged: its bytes do not give the digest|is no valid ONNX file"):
            check_file(ours)
    with pytest.raises(ExportError, match="is damaged"):
        verify(block, ours, torch.randn(2, 3, 6, 6))
    with pytest.raises(ExportError, match="is damaged"):
        fxprune.export.benchmark({"ours": ours}, seconds=0.1)


def test_every_mutation_of_a_foreign_file_is_refused_or_runs(foreign: Path) -> None:
    for mutant in mutate(foreign.read_bytes()):
        run_or_refuse(foreign, mutant)


def run_or_refuse(path: Path, blob: bytes) -> bool:
    """Load and run a file; nothing but an error of fxprune may come out."""
    path.write_bytes(blob)
    try:
        session = OrtCpu().load(path, threads=1)
        feed = {info.name: np.ones([size or 2 for size in info.shape], info.dtype) for info in session.inputs}
        session.run(feed)
    except FxpruneError:
        return False
    return True


SIZES = (0, -1, 1, 3, 2**31 - 1, 2**62, -(2**63))


def test_every_hostile_graph_is_refused_or_runs(foreign: Path) -> None:
    """Sizes, types, names and attributes that no tool would write, in a file that can be read."""
    generator, blob, outcomes = random.Random(0), foreign.read_bytes(), []
    changes = (change_attribute, change_size, change_type, change_reader, change_op)
    for number in range(200):
        proto = onnx.load_from_string(blob)
        changes[number % len(changes)](proto.graph, generator)
        outcomes.append(run_or_refuse(foreign, proto.SerializeToString()))
    assert 100 < outcomes.count(False) < 200  # most are wrong; a graph that is merely another one runs


def change_attribute(graph: onnx.GraphProto, generator: random.Random) -> None:
    attribute = generator.choice([each for node in graph.node for each in node.attribute if each.ints])
    attribute.ints[generator.randrange(len(attribute.ints))] = generator.choice(SIZES)


def change_size(graph: onnx.GraphProto, generator: random.Random) -> None:
    tensor = generator.choice(graph.initializer)
    tensor.dims[generator.randrange(len(tensor.dims))] = generator.choice(SIZES)


def change_type(graph: onnx.GraphProto, generator: random.Random) -> None:
    generator.choice(graph.initializer).data_type = generator.randrange(24)


def change_reader(graph: onnx.GraphProto, generator: random.Random) -> None:
    node = generator.choice(graph.node)
    node.input[generator.randrange(len(node.input))] = generator.choice([*node.output, "input", "nowhere"])


def change_op(graph: onnx.GraphProto, generator: random.Random) -> None:
    generator.choice(graph.node).op_type = generator.choice(["Loop", "Expand", "Tile", "Gather", "Div", "Nothing"])


def test_a_tool_that_changes_our_file_can_say_so(ours: Path) -> None:
    proto = onnx.load(ours)
    proto.doc_string = "changed"
    write(ours, proto)
    with pytest.raises(ExportError, match=r"let that take out the producer 'fxprune' and the metadata entry"):
        check_file(ours)
    proto.producer_name = "other"
    kept = [entry for entry in proto.metadata_props if entry.key != DIGEST]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    check_file(write(ours, proto))


@pytest.mark.parametrize("location", ["../secret", "/{folder}/secret", "link", "inside/../../secret", "missing"])
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_weights_outside_of_the_folder_are_refused(tmp_path: Path, location: str, place: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "inside"
    folder.mkdir()
    os.symlink("../secret", folder / "link")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location.format(folder=tmp_path))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    if place == "attribute":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    graph = helper.make_graph(nodes, "g", [x], [y], [tensor] if place == "initializer" else [])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(ExportError, match=r"is no valid ONNX file: .*(external|inside|stored)"):
        check_file(write(folder / "m.onnx", proto))


def test_weights_beside_the_file_belong_to_its_digest(
    tmp_path: Path, block: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "ONE_FILE_LIMIT", 0)
    path = to_onnx(block, torch.randn(1, 3, 6, 6), tmp_path / "block.onnx").path
    check_file(path)
    weights = path.with_name("block.onnx.data")
    for mutant in mutate(weights.read_bytes(), 20):
        weights.write_bytes(mutant)
        with pytest.raises(ExportError, match=r"does not hold the weights of block\.onnx|is no valid ONNX file"):
            check_file(path)


@pytest.mark.parametrize(
    ("blob", "reason"),
    [(b"", "is no valid ONNX file"), (b"not a model", "Unable to parse"), (None, "there is no file")],
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, blob: bytes | None, reason: str) -> None:
    path = tmp_path / "m.onnx"
    if blob is not None:
        path.write_bytes(blob)
    with pytest.raises(ExportError, match=reason):
        check_file(path)


def test_the_metadata_say_what_made_the_model(tmp_path: Path, randomise: Callable[[nn.Module], nn.Module]) -> None:
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3)
    model, images = randomise(nn.Sequential(*layers)), torch.randn(2, 3, 9, 9)
    compact = fxprune.convert(fxprune.prune(model, images, target=fxprune.Sparsity(0.5)))
    fxprune.save(compact, tmp_path / "compact.safetensors")
    paths = [to_onnx(made, images, tmp_path / f"{name}.onnx").path for name, made in (
        ("saved", compact),
        ("loaded", fxprune.load(model, tmp_path / "compact.safetensors")),
        ("dense", model),
    )]  # fmt: skip
    saved, loaded, dense = ({e.key: e.value for e in onnx.load(path).metadata_props} for path in paths)
    assert saved["fxprune.model"] == dense["fxprune.model"] == "Sequential"
    assert saved["fxprune.method"].startswith("GMP(")
    assert saved["fxprune.target"].startswith("Sparsity(")
    assert saved["fxprune.plan.sha256"] == loaded["fxprune.plan.sha256"]
    assert loaded["fxprune.method"] == saved["fxprune.method"]
    assert set(dense) == {"fxprune.version", "fxprune.model", DIGEST}
