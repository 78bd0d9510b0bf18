"""Which channels stayed, layer by layer, as a picture?"""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from fxprune.demo.report import Layer

KEPT, REMOVED = "#1f5f99", "#c6daec"
BAR_INCHES = 0.26


def count_channels(prepared: nn.Module, compact: nn.Module) -> tuple[Layer, ...]:
    """Count the output channels of convolutions and linear layers before and after conversion, in the model's order.

    A layer that is gone as a whole kept none.
    """
    after = {name: _count_rows(layer) for name, layer in compact.named_modules()}
    layers = []
    for name, layer in prepared.named_modules():
        before = _count_rows(layer)
        if before:
            kept = after.get(name, 0)
            layers.append(Layer(name, kept, before - kept))
    return tuple(layers)


def draw_channels(layers: Sequence[Layer], title: str, path: Path) -> None:
    """Draw one bar a layer, the first on top: kept channels, and behind them in a lighter colour those removed."""
    from matplotlib.figure import Figure  # only here: an extra, whose absence `check_settings` explains

    figure = Figure(figsize=(8, 1.3 + BAR_INCHES * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(layers))
    kept, removed = [layer.kept for layer in layers], [layer.removed for layer in layers]
    axes.barh(places, kept, color=KEPT, label="kept")
    axes.barh(places, removed, left=kept, color=REMOVED, label="removed")
    for place, layer in enumerate(layers):
        total = layer.kept + layer.removed
        axes.annotate(
            f"{layer.kept} of {total}", (total, place), (4, 0), textcoords="offset points", va="center", size=8
        )
    axes.set_yticks(places, [layer.name for layer in layers], size=8)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max(layer.kept + layer.removed for layer in layers))
    axes.set_xlabel("output channels", size=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, size=10)
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _count_rows(layer: nn.Module) -> int:
    """The layer's output channels; 0 for other layers, and where the conversion took the weight away."""
    if not isinstance(layer, (nn.Conv2d, nn.Linear)) or "weight" not in layer._parameters:
        return 0
    return layer.weight.shape[0]
