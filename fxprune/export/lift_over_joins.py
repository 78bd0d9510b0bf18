"""How do the parts of a concatenation stay in a runtime's own layout, and take the activation and pooling behind it?

ONNX Runtime computes convolutions in blocks of channels. A Concat keeps the blocks where its axis is written as 1, not
as -3, and an activation is fused into a Conv right in front of it alone. What works on every element alone commutes
with data movement, and pooling with that of whole channels,

    relu(concat(a, b)) = concat(relu(a), relu(b))        pool(gather(a, order)) = gather(pool(a), order)

to the last bit, so activations go up to the convolutions and sums that are joined, and behind them a pooling by
strides, which leaves less to be joined.
"""

from onnxscript import ir

from fxprune.export.graph_constants import bypass, get_input, read_constant, read_int

ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Clip")
"""Those that runtimes fuse into a convolution."""

POOLINGS = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
LAYERS = ("Conv", "Add")
JOINS = ("Concat", "Gather")


def lift_over_joins(model: ir.Model) -> int:
    """Move activations and poolings in front of joins of layers, and count axes of joins from the front, in place.

    Return how many moved.
    """
    count = 0
    for node in list(model.graph):
        if node.domain == "" and node.op_type in JOINS:
            count_axis_from_front(node)
        value = get_input(node, 0)
        sources = find_sources_of(node)
        if sources and value not in sources:
            for source in sources:
                insert_behind(source, node)
            if node.op_type in POOLINGS:
                resize_joins(value, node.outputs[0].shape)
            bypass(node)
            count += 1
    return count


def find_sources_of(node: ir.Node) -> list[ir.Value]:
    """List the results behind which a node may stand instead; none where it has to stay."""
    if node.domain != "" or any(value is not None and read_constant(value) is None for value in node.inputs[1:]):
        return []
    if node.op_type in ACTIVATIONS:
        return find_sources(get_input(node, 0), LAYERS)
    if node.op_type in POOLINGS and len(node.outputs) == 1 and has_strides(node):
        sources = find_sources(get_input(node, 0), (*LAYERS, *ACTIVATIONS), axis=1)
        return sources if len({rank_of(value) for value in (*sources, get_input(node, 0))}) == 1 else []
    return []


def rank_of(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def has_strides(node: ir.Node) -> bool:
    """Say whether a pooling leaves out positions."""
    strides = node.attributes.get("strides")
    return node.op_type.startswith("Global") or (strides is not None and max(strides.as_ints()) > 1)


def count_axis_from_front(node: ir.Node) -> None:
    """Write the axis of a Concat or Gather as a number from 0, where the rank is known."""
    value, axis = node.outputs[0] if node.op_type == "Concat" else get_input(node, 0), read_int(node, "axis", 0)
    if axis < 0 and value is not None and value.shape is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", axis + len(value.shape))


def find_sources(value: ir.Value | None, kinds: tuple[str, ...], axis: int | None = None) -> list[ir.Value]:
    """List the results of ops of these kinds that joins, along this axis, bring together to a value.

    None where others do.
    """
    node = None if value is None else value.producer()
    if value is None or node is None or node.domain != "" or len(value.uses()) != 1 or value.is_graph_output():
        return []
    if node.op_type in kinds:
        return [value]
    if node.op_type not in JOINS or axis not in (None, read_int(node, "axis", 0)):
        return []
    joined = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    parts = [find_sources(part, kinds, axis) for part in joined]
    return [source for part in parts for source in part] if all(parts) else []


def resize_joins(value: ir.Value | None, shape: ir.Shape | None) -> None:
    """Give joins of what was pooled, back to where it was pooled, the height and width of the pooling's result."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type not in JOINS:
        return
    value.shape = pooled_shape(value.shape, shape)
    for part in node.inputs if node.op_type == "Concat" else node.inputs[:1]:
        resize_joins(part, shape)


def pooled_shape(shape: ir.Shape | None, pooled: ir.Shape | None) -> ir.Shape | None:
    """Join batch and channels of one shape and the other dimensions of another."""
    return None if shape is None or pooled is None else ir.Shape([*shape[:2], *pooled[2:]])


def insert_behind(source: ir.Value, node: ir.Node) -> None:
    """Put a copy of a node between a value and what reads it."""
    producer = source.producer()
    assert producer is not None
    assert isinstance(producer.graph, ir.Graph)
    copy = ir.Node("", node.op_type, [source, *node.inputs[1:]], list(node.attributes.values()))
    output = copy.outputs[0]
    output.name, output.type = f"{source.name}_{node.op_type.lower()}", source.type
    output.shape = pooled_shape(source.shape, node.outputs[0].shape) if node.op_type in POOLINGS else source.shape
    for user, index in [use for use in source.uses() if use.node is not copy]:
        user.replace_input_with(index, output)
    producer.graph.insert_after(producer, copy)
