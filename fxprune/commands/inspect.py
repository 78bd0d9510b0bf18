"""`fxprune inspect`: what of a model can be pruned."""

from pathlib import Path
from typing import Annotated

import typer

from fxprune.commands.endings import require_writable
from fxprune.commands.options import InputSize, Model, Trust, Weights


def inspect(
    model: Model,
    weights: Weights = None,
    trust: Trust = False,
    input: InputSize = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A layer to leave as it is, or a glob; repeatable.")] = None,
    json: Annotated[Path | None, typer.Option(help="A file to write all of it to.")] = None,
    picture: Annotated[Path | None, typer.Option(help="A .dot, .svg or .png file to draw the groups in.")] = None,
) -> None:
    """Show which channels of a model can be pruned, which cannot, and because of which line of its code."""
    from fxprune.commands.load_model import load_model, make_inputs
    from fxprune.commands.load_weights import load_weights
    from fxprune.inspection.inspect import inspect as inspect_model
    from fxprune.inspection.picture import check_picture

    if picture is not None:
        check_picture(picture)
    require_writable(json, picture, read=[weights])
    made = load_weights(load_model(model), weights, trust)
    found = inspect_model(made, make_inputs(made, model, input), exclude or ())
    typer.echo(found)
    if json is not None:
        json.write_text(found.to_json() + "\n", encoding="utf-8")
    if picture is not None:
        found.write_picture(picture)
