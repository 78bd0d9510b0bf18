"""How does a batch norm disappear into the linear node before it?

In eval mode a batch norm is one multiplication and one addition a channel,

    y = (x - mean) / sqrt(var + eps) * gamma + beta = scale * x + shift,
    scale = gamma / sqrt(var + eps),  shift = beta - mean * scale.

Where x comes from a convolution, x = W * u + b, both go into its parameters:

    scale * (W * u + b) + shift = (scale * W) * u + (scale * b + shift),

that is W' = W scale and b' = b scale + shift = (b - mean) scale + beta, with scale along
the output channels of W. `absorb_affine.py` has the nodes that can do this.

A batch norm stays where it is, and the result says why, if a value on the way has another
consumer or if a parameter is not a constant.

This replaces the exporter's own fusion, which writes its results over initializers that
other nodes share: wrong results, silently (pytorch issues 166797 and 169178).
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from onnxscript import ir

from fxprune.export.absorb_affine import Affine, NotAbsorbed, absorb_affine, find_absorbers
from fxprune.export.graph_constants import bypass, get_input, read_constant, read_float, read_int


@dataclass(frozen=True)
class Folding:
    """Which batch norms were folded, and why the others were not: (name, reason)."""

    folded: tuple[str, ...]
    kept: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """Return the numbers, and how many stayed for which reason."""
        reasons = Counter(reason for _, reason in self.kept)
        lines = [f"batch norms: {len(self.folded)} folded, {len(self.kept)} kept"]
        return "\n".join(lines + [f"  {number} because {reason}" for reason, number in reasons.most_common()])


def fold_batchnorm(model: ir.Model) -> Folding:
    """Fold each batch norm of an ONNX graph into the Conv, ConvTranspose, Gemm or MatMul before it, in place.

    The outputs stay the same up to rounding; names of inputs and outputs stay. A weight that
    other nodes use too is copied, so they keep theirs.
    """
    folded: list[str] = []
    kept: list[tuple[str, str]] = []
    for node in list(model.graph):
        if node.op_type != "BatchNormalization" or node.domain != "":
            continue
        name = _name_batchnorm(node)
        try:
            absorbers = find_absorbers(node.inputs[0], read_affine(node))
        except NotAbsorbed as reason:
            kept.append((name, str(reason)))
            continue
        for absorber in absorbers:
            absorb_affine(absorber)
            value = absorber.node.outputs[0]
            value.name = f"{value.name}_scaled"  # no longer what the model computes under this name
        bypass(node)
        folded.append(name)
    return Folding(tuple(folded), tuple(kept))


def read_affine(node: ir.Node) -> Affine:
    """Return scale and shift of a batch norm; raises NotAbsorbed if they are not constants."""
    if read_int(node, "training_mode", 0):
        raise NotAbsorbed("it uses the statistics of its batch")
    gamma, beta, mean, variance = (read_constant(get_input(node, index)) for index in range(1, 5))
    if gamma is None or beta is None or mean is None or variance is None:
        raise NotAbsorbed("its parameters are not constants")
    scale = gamma / np.sqrt(variance + read_float(node, "epsilon", 1e-5))
    return Affine(scale, beta - mean * scale)


def _name_batchnorm(node: ir.Node) -> str:
    """Return the module's name, which its running mean carries, or else the node's."""
    mean = get_input(node, 3)
    name = mean.name if mean is not None and mean.is_initializer() else node.name
    return str(name).removesuffix(".running_mean")
