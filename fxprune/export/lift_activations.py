"""How do the parts of a concatenation stay in a runtime's own layout, and take the activation behind it?

ONNX Runtime computes convolutions in blocks of channels. A Concat keeps the blocks where its axis is written as 1, not
as -3, and an activation is fused into a Conv right in front of it alone. Element-wise ops and data movement commute,

    relu(concat(a, b)) = concat(relu(a), relu(b))        relu(gather(a, order)) = gather(relu(a), order)

to the last bit, so activations go up to the convolutions and sums that are joined.
"""

from onnxscript import ir

from fxprune.export.graph_constants import bypass, get_input, read_constant, read_int

ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Clip")
"""Those that runtimes fuse into a convolution."""


def lift_activations(model: ir.Model) -> int:
    """Move activations in front of joins of convolutions, and count axes of joins from the front, in place.

    Return how many activations moved.
    """
    count = 0
    for node in list(model.graph):
        if node.domain == "" and node.op_type in ("Concat", "Gather"):
            count_axis_from_front(node)
        if node.domain != "" or node.op_type not in ACTIVATIONS:
            continue
        if any(value is not None and read_constant(value) is None for value in node.inputs[1:]):
            continue
        sources = find_sources(get_input(node, 0))
        if sources and get_input(node, 0) not in sources:
            for source in sources:
                insert_behind(source, node)
            bypass(node)
            count += 1
    return count


def count_axis_from_front(node: ir.Node) -> None:
    """Write the axis of a Concat or Gather as a number from 0, where the rank is known."""
    value, axis = node.outputs[0] if node.op_type == "Concat" else get_input(node, 0), read_int(node, "axis", 0)
    if axis < 0 and value is not None and value.shape is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", axis + len(value.shape))


def find_sources(value: ir.Value | None) -> list[ir.Value]:
    """List the results of convolutions and sums that joins alone bring together to a value; none where others do."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.domain != "" or len(value.uses()) != 1 or value.is_graph_output():
        return []
    if node.op_type in ("Conv", "Add"):
        return [value]
    if node.op_type not in ("Concat", "Gather"):
        return []
    parts = [find_sources(part) for part in (node.inputs if node.op_type == "Concat" else node.inputs[:1])]
    return [source for part in parts for source in part] if all(parts) else []


def insert_behind(source: ir.Value, activation: ir.Node) -> None:
    """Put a copy of an activation between a value and what reads it."""
    producer = source.producer()
    assert producer is not None
    assert isinstance(producer.graph, ir.Graph)
    copy = ir.Node("", activation.op_type, [source, *activation.inputs[1:]], list(activation.attributes.values()))
    output = copy.outputs[0]
    output.name, output.shape, output.type = f"{source.name}_{activation.op_type.lower()}", source.shape, source.type
    for user, index in [use for use in source.uses() if use.node is not copy]:
        user.replace_input_with(index, output)
    producer.graph.insert_after(producer, copy)
