"""How does a padding with zeros disappear into the convolutions behind it?

A Conv pads by itself, and each side as much as it likes, where torch's pads both sides alike: so a Pad that adds zeros
around the image, and nothing to batch or channels, goes into the `pads` of every Conv that reads it. Where it cuts
(negative pads), or something else reads it, it stays for those.

ONNX Runtime folds such a Pad into a MaxPool, too, whose own padding never wins, as a zero does among negative numbers.
It leaves those alone that name their axes.
"""

import numpy as np
from onnxscript import ir

from fxprune.export.graph_constants import add_constant, get_input, read_constant


def fold_pads(model: ir.Model) -> int:
    """Fold the Pads of an ONNX graph into the Convs that read them, in place; return how many went."""
    count = 0
    for node in list(model.graph):
        sides = read_zeros(node) if node.op_type == "Pad" and node.domain == "" else None
        source = get_input(node, 0)
        if sides is None or source is None:
            continue
        for user, index in list(node.outputs[0].uses()):
            if user.op_type == "Conv" and index == 0 and can_take(user, len(sides) // 2):
                add_pads(user, sides)
                user.replace_input_with(0, source)
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            model.graph.remove(node, safe=True)
            count += 1
        elif any(user.op_type == "MaxPool" for user, _ in node.outputs[0].uses()):
            name_axes(node)
    return count


def name_axes(node: ir.Node) -> None:
    """Say which axes a Pad adds to, although it is all of them."""
    pads = get_input(node, 1)
    sizes = read_constant(pads)
    if pads is not None and sizes is not None and get_input(node, 3) is None:
        add_constant(node, 3, np.arange(sizes.size // 2), f"{node.name or pads.name}_axes", like=pads)


def read_zeros(node: ir.Node) -> list[int] | None:
    """The zeros that a Pad adds at the begins and the ends of the image's dimensions; None if it does anything else."""
    mode = node.attributes.get("mode")
    pads, value, axes = (read_constant(get_input(node, index)) for index in (1, 2, 3))
    given = [get_input(node, index) is not None for index in (2, 3)]
    if (mode is not None and mode.as_string() != "constant") or pads is None or pads.size < 6:
        return None
    if (given[0] and (value is None or value.any())) or (given[1] and axes is None) or axes is not None:
        return None
    sides = [int(side) for side in pads]
    half = len(sides) // 2
    outside = [sides[0], sides[1], sides[half], sides[half + 1]]
    inside = sides[2:half] + sides[half + 2 :]
    return inside if not any(outside) and min(inside) >= 0 else None


def can_take(node: ir.Node, dims: int) -> bool:
    """Whether a Conv has explicit pads, along so many dimensions."""
    automatic = node.attributes.get("auto_pad")
    pads = node.attributes.get("pads")
    return (automatic is None or automatic.as_string() == "NOTSET") and (
        pads is None or len(pads.as_ints()) == 2 * dims
    )


def add_pads(node: ir.Node, sides: list[int]) -> None:
    """Add zeros to those that a Conv adds already."""
    pads = node.attributes.get("pads")
    own = list(pads.as_ints()) if pads is not None else [0] * len(sides)
    node.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, sides, strict=True)])
