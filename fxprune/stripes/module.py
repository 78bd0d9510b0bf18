"""A convolution that lost stripes: smaller dense convolutions whose outputs are summed and joined."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.stripes.lowering import Lowering, Part
from fxprune.stripes.reading import Options, Reading, find_reading
from fxprune.stripes.rectangles import Rectangle


def cut_kernel(weight: Tensor, filters: tuple[int, ...], rectangle: Rectangle) -> Tensor:
    """Take a rectangle of some filters out of a weight, [filters, channels, height, width]."""
    rows = torch.tensor(list(rectangle.rows), device=weight.device)
    columns = torch.tensor(list(rectangle.columns), device=weight.device)
    taken = weight.index_select(0, torch.tensor(filters, device=weight.device))
    return taken.index_select(2, rows).index_select(3, columns)


class StripeConv2d(nn.Module):
    """The lowering of one convolution: `parts[k][r]` is the convolution of rectangle r of part k.

    It takes and gives what the convolution did, [batch, channels, height, width] or without the batch. Where
    rectangles of one part overlap, the first one holds the weights of the common positions and the others zeros there.
    """

    order: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, lowering: Lowering, options: Options) -> None:
        super().__init__()
        kernel = (weight.size(2), weight.size(3))
        self.in_channels, self.out_channels = weight.size(1) * options.groups, weight.size(0)
        self.readings = [[find_reading(r, kernel, options) for r in part.rectangles] for part in lowering.parts]
        self.parts = nn.ModuleList(
            nn.ModuleList(make_convolutions(weight, bias, part, options, readings))
            for part, readings in zip(lowering.parts, self.readings, strict=True)
        )
        places = torch.tensor(lowering.order, device=weight.device).argsort()
        identity = bool((places == torch.arange(len(places), device=places.device)).all())
        self.register_buffer("order", None if identity else places)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for part, readings in zip(self.convolutions(), self.readings, strict=True):
            total: Tensor | None = None
            for convolution, reading in zip(part, readings, strict=True):
                result = convolution(x if reading.pad is None else F.pad(x, reading.pad))
                total = result if total is None else total + result
            outputs.append(total)
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -3)  # type: ignore[arg-type]
        assert joined is not None
        return joined if self.order is None else joined.index_select(-3, self.order)

    def convolutions(self) -> list[list[nn.Conv2d]]:
        """The smaller convolutions, of each part."""
        return [[c for c in part.children() if isinstance(c, nn.Conv2d)] for part in self.parts.children()]


def make_convolutions(
    weight: Tensor, bias: Tensor | None, part: Part, options: Options, readings: list[Reading]
) -> list[nn.Conv2d]:
    """Make the convolutions of one part; the first has the bias."""
    made = []
    left = weight.detach().clone()
    for number, (rectangle, reading) in enumerate(zip(part.rectangles, readings, strict=True)):
        kernel = cut_kernel(left, part.filters, rectangle)
        for i in rectangle.rows:
            left[
                list(part.filters), :, i, rectangle.columns.start : rectangle.columns.stop : rectangle.columns.step
            ] = 0
        has_bias = bias is not None and number == 0
        convolution = nn.utils.skip_init(
            nn.Conv2d, weight.size(1) * options.groups, len(part.filters), (kernel.size(2), kernel.size(3)),
            stride=options.stride, padding=reading.padding, dilation=reading.dilation, groups=options.groups,
            bias=has_bias, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        convolution.weight = nn.Parameter(kernel, weight.requires_grad)
        if bias is not None and has_bias:
            own = bias.detach()[list(part.filters)].clone()
            convolution.bias = nn.Parameter(own, bias.requires_grad)
        made.append(convolution)
    return made
