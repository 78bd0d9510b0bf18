"""`fxprune export`: write a model as a checked ONNX file."""

from pathlib import Path
from typing import Annotated

import typer

import fxprune
from fxprune.commands.endings import require_writable
from fxprune.commands.options import InputSize, Model, Trust, Weights
from fxprune.onnx_choices import OPSET, Precision


def export(
    model: Model,
    onnx: Annotated[Path, typer.Option(help="The file to write.")],
    weights: Weights = None,
    trust: Trust = False,
    input: InputSize = None,
    precision: Annotated[Precision, typer.Option(help="Of the weights.")] = "fp32",
    opset: Annotated[int, typer.Option(help="The version of ONNX's operators.")] = OPSET,
) -> None:
    """Write a model, or what fxprune.save wrote of it, as one ONNX file, and compare the file with the model."""
    from fxprune.commands.load_model import load_model, make_inputs
    from fxprune.commands.load_weights import load_weights

    require_writable(onnx, read=[weights])
    made = load_weights(load_model(model), weights, trust)
    inputs = make_inputs(made, model, input)
    typer.echo(fxprune.export.to_onnx(made, inputs, onnx, precision=precision, opset=opset))
