"""Which options do several commands have in common?"""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="torchvision:NAME, timm:NAME, package.module:function.")]
InputSize = Annotated[
    list[str] | None, typer.Option(metavar="1x3x224x224", help="The size of an input; repeatable, in their order.")
]
Weights = Annotated[Path | None, typer.Option(help="The model's weights, as .safetensors; or what fxprune.save wrote.")]
Trust = Annotated[bool, typer.Option("--trust", help="Read weights from a pickle, which can run code.")]
Align = Annotated[int, typer.Option(help="Widths on multiples of this, such as 16.")]
Batch = Annotated[str, typer.Option(help="Batch sizes to time, with commas between.")]
Threads = Annotated[str, typer.Option(help="Numbers of threads to time with, with commas between.")]
Seconds = Annotated[float, typer.Option(help="Most measuring time, a network and setting.")]
Layers = Annotated[bool, typer.Option("--layers", help="Profile the layers on ort-cpu, too.")]
