"""Does some op's rule lose channels? What an op takes it has to give on, to read, to count or to pin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxprune.passes.analyse import ShadowRun
from fxprune.shadow.ids import PINNED, Ids, IdTable
from fxprune.shadow.tensor import Call, Constant


def watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every analysis assert that of no op that computes something an input's channels are forgotten.

    Forgotten channels are needed by nobody, and go at conversion although what was computed of them is still there.
    """
    follow, resolve = ShadowRun.follow, IdTable.resolve

    def note(self: ShadowRun, call: Call) -> list[tuple[Ids, Constant | None]]:
        readers, mixes = len(self.table.readers), len(self.table.mixes)
        before = [ids for t in call.tensors for ids in t.ids]
        shadows = follow(self, call)
        if not call.moves and before and not takes_only_the_shape(call):
            after = [ids for each, _ in shadows for ids in each]
            after += [ids for reader in self.table.readers[readers:] for ids in (reader.columns, reader.rows)]
            after += [mix.ids for mix in self.table.mixes[mixes:]]
            vars(self.table).setdefault("taken", []).append((str(call.op), before, after))  # freed with the table
        return shadows

    def check(self: IdTable) -> Tensor:
        units = resolve(self)
        for op, before, after in vars(self).pop("taken", ()):
            lost = find_units(units, before) - find_units(units, after) - {PINNED}
            assert not lost, f"{op} forgets {len(lost)} units"
        return units

    monkeypatch.setattr(ShadowRun, "follow", note)
    monkeypatch.setattr(IdTable, "resolve", check)


def takes_only_the_shape(call: Call) -> bool:
    """Whether an op makes another tensor like one, as `new_zeros` and `zeros_like` do."""
    name = call.op.overloadpacket.__name__
    return name.startswith("new_") or name.endswith("_like")


def find_units(units: Tensor, ids: list[Tensor]) -> set[int]:
    return set(torch.unique(units[torch.cat([t.reshape(-1) for t in ids])]).tolist()) if ids else set()
