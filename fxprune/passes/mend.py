"""How the graph of a smaller model is mended: literals that no longer fit, and moves that have no smaller form.

The smaller graph is run on shadows, node by node, and each result is compared with what the larger graph
gave, less the dead units. A node that raises, or gives other channels, is tried with other literals; if
none fits, and it only moves elements, it is replaced by one selection from where those elements stand.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxprune.compile_graph import inherit
from fxprune.errors import FxpruneError
from fxprune.find_module import find_module
from fxprune.model import Inputs, TracedModel, find_tensor, in_eval_mode
from fxprune.passes.analyse import Channels, Shadow, ShadowRun, bind_shadows, find_written, freeze
from fxprune.passes.find_dead import JOINS, Plan, cut
from fxprune.passes.guards import check_guard
from fxprune.passes.literals import Arithmetic, Width, find_literals, mark_dims, replace_literals
from fxprune.passes.moved_elements import find_selection, is_table, number, step
from fxprune.passes.pieces import Piece
from fxprune.shadow.ids import PINNED, IdTable
from fxprune.shadow.tensor import ShadowTensor, varying

MOST_TRIALS = 256

RAGGED = object()
"""Stands for a result that has no dense form; only the selection that replaces a chain of moves passes it by."""


CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv)


class CannotMend(FxpruneError):
    """A node has no form for so few channels."""

    def __init__(self, node: fx.Node, units: Tensor) -> None:
        super().__init__(f"{node.name} ({node.meta.get('where', '')}) cannot be made smaller")
        self.node, self.units = node, units


class Mender:
    """The run of one smaller graph beside the results of the larger one."""

    def __init__(
        self, compact: TracedModel, model: TracedModel, graph: fx.Graph, originals: dict[fx.Node, fx.Node],
        channels: Channels, index: int, plan: Plan,
    ) -> None:  # fmt: skip
        self.compact, self.model, self.graph, self.originals = compact, model, graph, originals
        self.channels, self.plan = channels, plan
        self.values, self.effects = channels.values[index], channels.effects[index]
        self.env: dict[fx.Node, Any] = {}

    def run_all(self, inputs: Inputs, shadows: dict[str, Shadow]) -> None:
        """Run the graph, mending each node that needs it."""
        table = IdTable(count=len(self.channels.units), whole_heads=self.channels.whole_heads)
        self.lasting = torch.zeros(len(self.channels.units), dtype=torch.bool)  # ids that both graphs know
        for shadow in self.channels.parameters.values():
            for ids in shadow.ids:
                self.lasting[ids] = True
        self.run = ShadowRun(self.compact, table, constants=False)
        for name, shadow in shadows.items():
            owner, _, leaf = name.rpartition(".")
            self.run.add_parameter(name, getattr(find_module(self.compact, owner), leaf), shadow.ids)
        self.named = bind_shadows(self.graph, inputs)
        with torch.no_grad(), in_eval_mode(self.compact), self.run.quietly():
            for node in list(self.graph.nodes):
                self.mend(node)

    def mend(self, node: fx.Node) -> None:
        """Run a node as it is; else with other literals; else as a selection."""
        old, self.meta = self.originals.get(node), inherit(node)
        if node.op in ("placeholder", "get_attr", "output") or old is None:
            self.env[node] = self.attempt(node)
            return
        if node.target is check_guard:
            if isinstance(node.args[0], fx.Node) and self.is_of_widths(node.args[0]):
                self.graph.erase_node(node)
            self.env[node] = None
            return
        if node.target is torch._assert and any(self.env[n] is False for n in node.all_input_nodes):
            # It was about the larger model's widths.
            self.env[node] = self.graph.erase_node(node)
            return
        if self.is_ragged(self.values[old]):
            self.env[node] = RAGGED
            return
        if node.target in CONVOLUTIONS and self.spread(node, old):
            return
        self.keep_meaning(node, old)
        if old in self.channels.elementwise and isinstance(
            self.values[old], Shadow
        ):  # a scale by a number of channels stays what it was
            node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), self.as_literal)
        if old in self.channels.plain and not any(self.env[n] is RAGGED for n in node.all_input_nodes):
            self.env[node] = self.carry(node, old)
            return
        if self.fits(node, old, self.attempt(node)) or self.try_literals(
            node, self.alive_around(old), lambda: self.fits(node, old, self.attempt(node), altered=True)
        ):
            return
        if self.select(node, old) or self.select_piece(node, old) or self.select_made(node, old):
            return
        one = isinstance(self.values[old], Shadow) or find_written(node) is not None
        if old not in self.channels.moves or one:
            raise CannotMend(node, self.units_of(old))
        self.env[node] = RAGGED  # several tensors at once, as of chunk: each is selected by itself

    def is_of_widths(self, asked: fx.Node) -> bool:
        """Whether what a guard asks for follows from numbers of channels that have changed."""
        value, before = self.env[asked], self.values[self.originals[asked]] if asked in self.originals else None
        if value is RAGGED:
            return True
        if isinstance(value, Tensor) or isinstance(before, Shadow):
            return False
        numbers = [
            n for n in asked.all_input_nodes if not isinstance(self.env[n], tuple) or asked.target != operator.getitem
        ]
        return value != before or any(map(self.is_of_widths, numbers))

    def carry(self, node: fx.Node, old: fx.Node) -> ShadowTensor:
        """What the larger graph gave, less the dead units, and in the precision that the model has by now."""
        shadow = self.values[old]
        layout, ids = shadow.layout, list(shadow.ids)
        for n, m in zip(node.all_input_nodes, old.all_input_nodes, strict=False):
            before, now = getattr(self.values[m], "layout", None), self.env[n]
            if before is not None and before.dtype == layout.dtype != now.dtype:
                layout = layout.to(now.dtype)
        for dim, keep in self.plan.alive_along(self.channels, shadow).items():
            layout = layout.narrow(dim, 0, int(keep.sum())).clone()  # dense again
            ids = [cut(t, {dim: keep}) if t.size(dim) > 1 else t for t in ids]
        return ShadowTensor(layout, tuple(ids))

    def keep_meaning(self, node: fx.Node, old: fx.Node) -> None:
        """Write out the numbers that change what a node computes though not the shape of its result."""
        x = self.values[old.args[0]] if old.args and isinstance(old.args[0], fx.Node) else None
        if not isinstance(x, Shadow):
            return
        alive = self.plan.alive_along(self.channels, x)
        if node.target is F.scaled_dot_product_attention and old.kwargs.get("scale") is None:
            if not alive.get(len(x.shape) - 1, torch.ones(1)).all():
                node.update_kwarg("scale", x.shape[-1] ** -0.5)
        elif node.target == "view" and any(is_strided(self.env[n]) for n in node.all_input_nodes):
            if torch.dtype not in map(type, node.args):
                node.target = "reshape"  # the same, where strides allow a view; those of a selection may not
        elif node.target is F.group_norm and 1 in alive:
            groups: Any = fx.node.map_arg(old.args[1], lambda n: self.values[n])
            node.update_arg(1, int(alive[1].view(groups, -1).any(1).sum()))

    def spread(self, node: fx.Node, old: fx.Node) -> bool:
        """Let a convolution along channels meet the neighbours that it had, zeros where these are gone.

        What stays is spread over the places of the larger graph, and selected from the result. Says whether it was.
        """
        x, source, weight = operand(old, 0, "input"), operand(node, 0, "input"), operand(node, 1, "weight")
        kept = self.plan.alive_along(self.channels, self.values[x])
        near = [d for d, keep in kept.items() if d > 1 and not keep.all() and self.env[weight].size(d) > 1]
        if not near or not isinstance(self.env[source], Tensor):
            return False
        wide = source
        self.originals.setdefault(source, x)  # where closed channels that stay are muted in front of it
        for dim in near:
            places = kept[dim].to(torch.int64).cumsum(0) - 1
            wide = self.emit_selection(node, [wide], [int(kept[dim].sum())], dim, places.where(kept[dim], -1))
            self.originals[wide] = x
        with self.graph.inserting_before(node):
            chosen = self.graph.node_copy(node, lambda n: wide if n is source else n)
        self.env[chosen], self.originals[chosen] = self.attempt(chosen), old
        result = self.plan.alive_along(self.channels, self.values[old])
        for dim in near:
            places = result[dim].nonzero().reshape(-1)
            chosen = self.emit_selection(node, [chosen], [len(result[dim])], dim, places)
            self.originals[chosen] = old
        node.replace_all_uses_with(chosen)
        self.env[node] = self.env[chosen]
        return True

    def attempt(self, node: fx.Node) -> Any:
        """Run a node on shadows; return the error if it raises one, or if it needs what has no dense form."""
        self.run.table.node = node
        if any(self.env[n] is RAGGED for n in node.all_input_nodes):
            return ValueError("an input has no dense form")
        try:
            return self.run.run_node(node, self.env, self.named)
        except (
            RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, NotImplementedError, AssertionError,
        ) as error:  # fmt: skip
            return error

    def fits(self, node: fx.Node, old: fx.Node, result: Any, altered: bool = False, selected: bool = False) -> bool:
        """Whether a result is what the larger graph gave, less the dead units; if so, keep it."""
        if isinstance(result, Exception):
            return False
        expected, actual = tree_leaves(self.values[old]), tree_leaves(freeze(result))
        pairs = list(zip(expected, actual, strict=False))
        written = find_written(node)
        if written is not None:
            pairs.append((self.effects[old], freeze(self.env[written])))
        if len(expected) != len(actual) or not all(self.equals(e, a) for e, a in pairs if isinstance(e, Shadow)):
            return False
        if not selected and self.is_doubtful(node, old, altered) and not self.moves_alike(node, old):
            return False
        self.env[node] = result
        return True

    def moves_alike(self, node: fx.Node, old: fx.Node) -> bool:
        """Whether a node moves the numbered elements of its inputs as it did in the larger graph, dead units apart.

        Ids cannot tell: a layer that is left with one channel has none, and may be broadcast by mistake.
        """
        inputs = [n for n in old.all_input_nodes if isinstance(self.values[n], Shadow)]
        smaller = [n for n in node.all_input_nodes if isinstance(self.env[n], Tensor)]
        if len(inputs) != len(smaller):
            return False
        starts = itertools.accumulate((torch.Size(self.values[n].shape).numel() for n in inputs), initial=0)
        before = {n: number(self.values[n].shape, start) for n, start in zip(inputs, starts, strict=False)}
        kept = [cut(before[n], self.plan.alive_along(self.channels, self.values[n])) for n in inputs]
        after = dict(zip(smaller, kept, strict=True))
        for n, m in zip(inputs, smaller, strict=True):
            if is_table(self.env[m]):  # says which elements are taken, and is itself not moved
                before[n] = find_tensor(self.model, str(n.target)) if n.op == "get_attr" else self.values[n].made
                after[m] = self.env[m].held
            elif self.points_by_input(old, n, m):  # wherever: to the first
                before[n] = torch.zeros(self.values[n].shape, dtype=self.env[m].dtype)
                after[m] = torch.zeros(self.env[m].shape, dtype=self.env[m].dtype)
        wanted, got = step(old, before, self.values, self.model), step(node, after, self.env, self.compact)
        shadows = tree_leaves(self.values[old])
        old_written, written = find_written(old), find_written(node)
        if old_written is not None and written is not None:
            wanted, got, shadows = before[old_written], after[written], [self.effects[old]]
        triples = zip(tree_leaves(wanted), tree_leaves(got), shadows, strict=True)
        return all(torch.equal(cut(w, self.plan.alive_along(self.channels, s)), g) for w, g, s in triples)

    def points_by_input(self, old: fx.Node, index: fx.Node, now: fx.Node) -> bool:
        """Whether a tensor says which elements are taken or written, and an input of the model decides on that."""
        t = self.env[now]
        return index is not old.args[0] and not t.is_real and not t.is_floating_point() and not t.is_complex()

    def equals(self, expected: Shadow, actual: Any) -> bool:
        """Compare a result's shape, and its channels where they come from parameters."""
        if not isinstance(actual, Shadow) or len(expected.shape) != len(actual.shape):
            return False
        alive = self.plan.alive_along(self.channels, expected)
        if expected.made is not None:
            return actual.made is not None and torch.equal(cut(expected.made, alive), actual.made)
        for dim, size in enumerate(expected.shape):
            keep = alive.get(dim, torch.ones(size, dtype=torch.bool))
            if actual.shape[dim] != int(keep.sum()):
                return False
            if actual.shape[dim] < 2:
                continue
            for ids in expected.along(dim):
                wanted = ids[keep]
                named = self.lasting[wanted]
                if self.are_pinned(wanted):
                    continue
                seen = [found for found in actual.along(dim) if not self.are_pinned(found)]
                if bool((wanted == wanted[0]).all()) and all(map(self.are_alike, seen)):
                    continue  # what is left is one unit, of each group of a transposed convolution
                if named.any() and not any(self.agree(wanted[named], found[named]) for found in seen):
                    return False
        return True

    def are_pinned(self, ids: Tensor) -> bool:
        """Whether ids are of no unit, as those of a kernel's height, and tell nothing."""
        units = self.channels.units
        return bool((ids < len(units)).all()) and bool((units[ids] == PINNED).all())

    def are_alike(self, ids: Tensor) -> bool:
        """Whether ids are of one unit."""
        units = self.channels.units
        return bool((ids < len(units)).all()) and bool((units[ids] == units[ids[0]]).all())

    def agree(self, wanted: Tensor, found: Tensor) -> bool:
        """Whether ids are of the same units, where the smaller graph has any: a layer of one channel has none (0)."""
        units = self.channels.units
        known = (found != PINNED) & (found < len(units))
        return bool((found < len(units)).all()) and torch.equal(units[wanted[known]], units[found[known]])

    def is_ragged(self, value: Any) -> bool:
        """Whether some tensor of a result would lose units that are no whole indexes of a dimension."""
        return any(isinstance(s, Shadow) and self.plan.is_ragged(self.channels, s) for s in tree_leaves(value))

    def units_of(self, old: fx.Node) -> Tensor:
        """All units of a node's result and of its inputs."""
        ids = [t.reshape(-1) for s in self.shadows_around(old) for t in s.ids]
        return torch.unique(self.channels.units[torch.cat(ids)]) if ids else torch.zeros(0, dtype=torch.int64)

    def try_literals(self, node: fx.Node, alive: list[Tensor], fits: Callable[[], bool]) -> bool:
        """Put other sizes where sizes, bounds and numbers of channels stand, in each combination, until one fits.

        `alive` says for dimensions around the node which of their indexes stay. A number of channels that has not
        changed is counted as before where that fits: these may be tokens, some of them parameters, of which a larger
        image has more.
        """
        args, kwargs = node.args, node.kwargs
        plain = fx.node.map_arg(mark_dims(node, args, kwargs), self.as_arithmetic)
        literals = list(find_literals(plain))
        others = [sorted(set(count_below(v, node, alive)) - {v}) for v in literals]
        trials = itertools.product(*([self.as_counted(v), *more] for v, more in zip(literals, others, strict=True)))
        if plain == (args, kwargs):
            next(trials)  # as they are, which has been tried
        for choice in itertools.islice(trials, MOST_TRIALS):
            made: list[fx.Node] = []
            node.args, node.kwargs = self.write_out(replace_literals(plain, iter(choice)), node, made)
            if fits():
                return True
            node.args, node.kwargs = args, kwargs
            for each in reversed(made):
                self.graph.erase_node(each)
        return False

    def write_out(self, tree: Any, before: fx.Node, made: list[fx.Node]) -> Any:
        """Put nodes into the graph for the arithmetic among arguments that has other literals now."""
        if isinstance(tree, Arithmetic):
            args = self.write_out(tree.args, before, made)
            if args == tree.node.args:
                return tree.node
            with self.graph.inserting_before(before):
                made.append(self.emit(tree.node.target, args))
            return made[-1]
        if isinstance(tree, slice):
            return slice(*(self.write_out(part, before, made) for part in (tree.start, tree.stop, tree.step)))
        if isinstance(tree, dict):
            return {key: self.write_out(leaf, before, made) for key, leaf in tree.items()}
        if isinstance(tree, (tuple, list)):
            return type(tree)(self.write_out(leaf, before, made) for leaf in tree)
        return tree

    def is_doubtful(self, node: fx.Node, old: fx.Node, altered: bool) -> bool:
        """Whether a node that loses units moves elements by literals, or writes, so that ids alone do not tell."""
        written = find_written(node)
        if (old not in self.channels.moves and node.target is not operator.setitem) or node.target in JOINS:
            return False
        inputs = [leaf for n in old.all_input_nodes for leaf in tree_leaves(self.values[n])]
        direct = sum(isinstance(self.values[n], Shadow) for n in old.all_input_nodes)
        if direct != sum(isinstance(leaf, Shadow) for leaf in inputs):
            return False  # takes one of several tensors, as of chunk, which was checked itself
        if written is None and not all(isinstance(leaf, Shadow) for leaf in tree_leaves(self.values[old])):
            return False
        literal = altered or written is not None or any(True for _ in find_literals((node.args, node.kwargs)))
        return literal and bool(self.alive_around(old))

    def shadows_around(self, old: fx.Node) -> list[Shadow]:
        """The shadows of a node's result and of its inputs."""
        leaves = [leaf for n in (old, *old.all_input_nodes) for leaf in tree_leaves(self.values[n])]
        return [leaf for leaf in leaves if isinstance(leaf, Shadow)]

    def alive_around(self, old: fx.Node) -> list[Tensor]:
        """For each dimension of a node's result and inputs that loses units, which indexes stay."""
        found = [keep for s in self.shadows_around(old) for keep in self.plan.alive_along(self.channels, s).values()]
        return [keep for keep in found if not keep.all()]

    def as_literal(self, node: fx.Node) -> Any:
        """A number that is computed from widths alone and has changed, as it was in the larger graph."""
        old = self.originals.get(node)
        if old is None or old not in self.channels.widths or self.env[node] == self.values[old]:
            return node
        return self.values[old]

    def as_arithmetic(self, node: fx.Node) -> Any:
        """Also open what is computed from other numbers and literals: `batch * 12`, `size[:-1] + (96,)`."""
        old = self.originals.get(node)
        if old is not None and old in self.channels.widths and type(self.values[old]) is int:
            width = Width(self.values[old])
            width.node = node
            return width
        literal = self.as_literal(node)
        if (
            literal is not node
            or node.target not in ARITHMETIC
            or type(self.env.get(node)) not in (int, tuple, torch.Size)
        ):
            return literal
        return Arithmetic(node, fx.node.map_arg(node.args, self.as_arithmetic))

    def as_counted(self, literal: int) -> int | fx.Node:
        """The node that counts channels, where their number is what it was; else the number."""
        return literal.node if isinstance(literal, Width) and self.env[literal.node] == literal else int(literal)

    def select(self, node: fx.Node, old: fx.Node) -> bool:
        """Replace a node that only moves elements by a selection from the nearest tensors that have a dense form."""
        expected = self.values[old]
        if old not in self.channels.moves or not isinstance(expected, Shadow):
            return False
        sources = self.find_sources(node)
        if not sources:
            return False
        rank, shadows = len(expected.shape), [self.values[self.originals[s]] for s in sources]
        if any(len(s.shape) != rank for s in shadows):
            return False
        starts = [0, *itertools.accumulate(int(torch.Size(s.shape).numel()) for s in shadows)]
        numbered = [number(s.shape, start) for s, start in zip(shadows, starts, strict=False)]
        known = {self.originals[s]: n for s, n in zip(sources, numbered, strict=True)}
        wanted = self.leave_alive(self.replay(old, known), node)
        have = [self.leave_alive(n, s) for n, s in zip(numbered, sources, strict=True)]
        for dim in sorted({d for s in (expected, *shadows) for t in s.ids for d in varying(t)}):
            index = find_selection(have, wanted, dim)
            if index is None:
                continue
            if len(have) == 1 and torch.equal(index, torch.arange(have[0].size(dim))):
                node.replace_all_uses_with(sources[0])
                return True
            made = self.emit_selection(node, sources, [h.size(dim) for h in have], dim, index)
            self.originals[made] = old
            node.replace_all_uses_with(made)
            return self.fits(made, old, self.attempt(made), selected=True)
        return False

    def select_piece(self, node: fx.Node, old: fx.Node) -> bool:
        """Replace a node that takes one of several pieces of a tensor by moves of this piece alone."""
        if old not in self.channels.moves or not isinstance(self.values[old], Shadow):
            return False
        sources = self.find_sources(node)
        piece = Piece(self, node, sources[0]).write() if len(sources) == 1 else None
        if piece is None:
            return False
        self.originals[piece] = old
        node.replace_all_uses_with(piece)
        return self.fits(piece, old, self.env[piece], selected=True)

    def leave_alive(self, tensor: Tensor, node: fx.Node) -> Tensor:
        """Cut out of a tensor like a node's result in the larger graph what stays of that."""
        return cut(tensor, self.plan.alive_along(self.channels, self.values[self.originals[node]]))

    def select_made(self, node: fx.Node, old: fx.Node) -> bool:
        """Let what is made of numbers alone be made as it was, and select what stays of it."""
        expected = self.values[old]
        if not isinstance(expected, Shadow) or expected.made is None:
            return False
        node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), self.as_literal)
        self.env[node] = self.attempt(node)
        chosen = node
        for dim, keep in self.plan.alive_along(self.channels, expected).items():
            if keep.all():
                continue  # tokens, say, of which there may be more
            with self.graph.inserting_after(chosen):
                index = self.emit_index(keep.nonzero().reshape(-1))
            with self.graph.inserting_after(index):
                chosen = self.emit(torch.index_select, (chosen, dim, index))
        users = [user for user in node.users if user is not chosen and user in self.originals]
        for user in users:
            user.replace_input_with(node, chosen)
        self.originals[chosen] = old
        return isinstance(self.env[chosen], Tensor)

    def find_sources(self, node: fx.Node) -> list[fx.Node]:
        """Walk up through moves to the nearest tensors that were run in the smaller graph."""
        sources: list[fx.Node] = []
        stack = list(node.all_input_nodes)
        seen = set(stack)
        while stack:
            each = stack.pop()
            value = self.values[self.originals[each]] if each in self.originals else None
            if each.op == "get_attr" and is_table(self.env[each]):
                continue
            if isinstance(value, Shadow) and self.env[each] is not RAGGED:
                sources.append(each)
            elif self.moves_tensors(each):
                new = [n for n in each.all_input_nodes if n not in seen]
                seen.update(new)
                stack += new
        return sorted(sources)

    def moves_tensors(self, node: fx.Node) -> bool:
        """Whether a node only moves elements, and is no number or shape."""
        old = self.originals.get(node)
        return old in self.channels.moves and any(isinstance(leaf, Shadow) for leaf in tree_leaves(self.values[old]))

    def replay(self, old: fx.Node, known: dict[fx.Node, Tensor]) -> Any:
        """Run the larger graph's moves on numbered elements."""
        if old in known:
            return known[old]
        value = self.values[old]
        if not any(isinstance(leaf, Shadow) for leaf in tree_leaves(value)):
            return value  # a number or a shape, as it was
        return step(old, {n: self.replay(n, known) for n in old.all_input_nodes}, {}, self.model)

    def emit_selection(
        self, node: fx.Node, sources: list[fx.Node], sizes: list[int], dim: int, index: Tensor
    ) -> fx.Node:  # fmt: skip
        """Write `index_select`, or `narrow` where it takes neighbours; -1 stands for a zero."""
        graph = self.graph
        rank = len(self.values[self.originals[sources[0]]].shape)
        offsets = [0, *itertools.accumulate(sizes)]
        used = [i for i in range(len(sources)) if bool(((index >= offsets[i]) & (index < offsets[i + 1])).any())]
        base, shift = 0, torch.full_like(index, -1)
        for i in used:
            inside = (index >= offsets[i]) & (index < offsets[i + 1])
            shift[inside] = index[inside] - offsets[i] + base
            base += sizes[i]
        front = int((shift >= 0).to(torch.int8).argmax())
        back = len(shift) - 1 - int((shift >= 0).flip(0).to(torch.int8).argmax())
        middle = shift[front : back + 1].clone()
        with graph.inserting_before(node):
            x = sources[used[0]]
            if len(used) > 1:
                x = self.emit(torch.cat, ([sources[i] for i in used], dim))
            if bool((middle < 0).any()):
                middle[middle < 0] = base
                x = self.emit(F.pad, (x, [0, 0] * (rank - 1 - dim) + [0, 1]))
            if torch.equal(middle, torch.arange(int(middle[0]), int(middle[0]) + len(middle))):
                x = self.emit(torch.narrow, (x, dim, int(middle[0]), len(middle)))
            else:
                x = self.emit(torch.index_select, (x, dim, self.emit_index(middle)))
            if front or back + 1 < len(shift):
                x = self.emit(F.pad, (x, [0, 0] * (rank - 1 - dim) + [front, len(shift) - 1 - back]))
        return x

    def emit(self, function: Any, args: tuple[Any, ...]) -> fx.Node:
        """Add a call to the graph, and run it."""
        made = self.graph.call_function(function, args)
        made.meta = dict(self.meta)
        self.env[made] = self.attempt(made)
        return made

    def emit_index(self, index: Tensor) -> fx.Node:
        """Add a table of indexes to the model, and read it in the graph."""
        name = next(n for n in (f"index_{i}" for i in itertools.count()) if not hasattr(self.compact, n))
        device = next(self.compact.parameters()).device
        self.compact.register_buffer(name, index.to(device))
        self.run.add_parameter(name, getattr(self.compact, name), ())
        made = self.graph.get_attr(name)
        made.meta = dict(self.meta)
        self.env[made] = self.attempt(made)
        self.env[made].made = self.env[made].held  # it is never trained: what it selects of numbers is known, too
        return made


def count_below(literal: int, node: fx.Node, alive: list[Tensor]) -> Iterator[int]:
    """For each dimension that got smaller, how many of the indexes below a size or an index stay."""
    for keep in alive:
        if 0 < literal <= len(keep):
            yield int(keep[:literal].sum())
        elif (
            node.target is operator.getitem and -len(keep) <= literal < 0
        ):  # counted from the end; -1 is a size elsewhere
            yield int(keep[:literal].sum())


def operand(node: fx.Node, position: int, name: str) -> fx.Node:
    """Give the tensor that a call takes at a position or by name."""
    given = node.args[position] if len(node.args) > position else node.kwargs[name]
    assert isinstance(given, fx.Node)
    return given


def is_strided(t: Any) -> bool:
    """Whether a tensor does not lie in memory in the order of its indexes."""
    return isinstance(t, Tensor) and not t.is_contiguous()
