"""How much faster is one network than another on ONNX Runtime's CPU kernels?

    python benchmarks/latency.py dense.onnx compact.onnx
    python benchmarks/latency.py resnet18 mobilenet_v3_large --size 224 --batch 1 --batch 8

Each argument is an ONNX file or the name of a torchvision classifier, which is exported with
random weights: its time does not depend on them. The first one is the baseline.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import torchvision
import typer

from fxprune.errors import FxpruneError
from fxprune.export import benchmark, to_onnx


def main(
    networks: Annotated[list[str], typer.Argument(help="ONNX files or torchvision names; the first is the baseline")],
    batch: Annotated[list[int], typer.Option(help="batch size; may be given several times")] = [1, 8],  # noqa: B006
    threads: Annotated[int, typer.Option(help="threads of one operator")] = 1,
    seconds: Annotated[float, typer.Option(help="measurement a network and batch size, at most")] = 5.0,
    size: Annotated[int, typer.Option(help="height and width of the images, for torchvision names")] = 224,
    json: Annotated[Path | None, typer.Option(help="where to write the figures")] = None,
) -> None:
    """Time networks beside each other and print the table."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = {Path(name).stem: find_file(name, size, Path(folder)) for name in networks}
            result = benchmark(paths, batch_sizes=batch, threads=threads, seconds=seconds)
    except FxpruneError as error:
        raise typer.BadParameter(str(error)) from error
    print(result)
    if json is not None:
        json.write_text(result.to_json())


def find_file(name: str, size: int, folder: Path) -> Path:
    """Return the ONNX file of that name, or export the torchvision classifier of that name into the folder."""
    if name.endswith(".onnx"):
        return Path(name)
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise typer.BadParameter(f"{name} is neither an .onnx file nor a classifier of torchvision.")
    model = torchvision.models.get_model(name)
    return to_onnx(model, torch.randn(1, 3, size, size), folder / f"{name}.onnx", verify=False).path


if __name__ == "__main__":
    typer.run(main)
