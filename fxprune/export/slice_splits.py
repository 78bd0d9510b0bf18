"""How does a split whose size is known only at run time become slices?

torch's exporter writes chunks of a dynamic batch as a sequence of tensors, which onnxscript's folder does not
understand (it raises) and few runtimes have. With n the size of a part, its part i is x[i n : (i + 1) n].
"""

import numpy as np
from onnxscript import ir

from fxprune.export.graph_constants import get_input, read_constant, read_int


def slice_splits(model: ir.Model) -> None:
    """Replace each SplitToSequence into parts of one size, and the SequenceAt that read it, by Slices, in place.

    Those into parts of a constant size stay: the folder makes ordinary Splits of them.
    """
    for split in list(model.graph):
        if split.op_type != "SplitToSequence" or split.domain != "" or not _is_unknown_number(get_input(split, 1)):
            continue
        readers = [reader for reader, _ in split.outputs[0].uses()]
        if all(reader.op_type == "SequenceAt" and read_constant(reader.inputs[1]) is not None for reader in readers):
            for reader in readers:
                _slice_part(split, reader)
            model.graph.remove(split, safe=True)


def _is_unknown_number(size: ir.Value | None) -> bool:
    return size is not None and size.shape is not None and len(size.shape) == 0 and read_constant(size) is None


def _slice_part(split: ir.Node, reader: ir.Node) -> None:
    """Let a Slice take the place of the node that reads one part."""
    index = read_constant(reader.inputs[1])
    graph, part = split.graph, reader.outputs[0]
    assert isinstance(graph, ir.Graph)
    assert index is not None
    flat, first, axis = (
        ir.node("Constant", [], {"value": ir.tensor(np.array([number], np.int64))})
        for number in (-1, int(index), read_int(split, "axis", 0))
    )
    size = ir.node("Reshape", [split.inputs[1], flat.outputs[0]])
    start = ir.node("Mul", [size.outputs[0], first.outputs[0]])
    end = ir.node("Add", [start.outputs[0], size.outputs[0]])
    sliced = ir.node("Slice", [split.inputs[0], start.outputs[0], end.outputs[0], axis.outputs[0]], name=reader.name)
    sliced.outputs[0].shape, sliced.outputs[0].type = part.shape, part.type
    graph.insert_before(reader, [flat, first, axis, size, start, end, sliced])
    name = part.name
    part.replace_all_uses_with(sliced.outputs[0], replace_graph_outputs=True)
    graph.remove(reader, safe=True)
    sliced.outputs[0].name = name
