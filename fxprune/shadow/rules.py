"""What each ATen op does to the two shadows: THE table, and the families of rules that it names.

A rule has two halves. `ids(table, call)` returns the ids of each output and tells the table what the
op unites, reads or pins; `constants(call)` returns what is known of each output whatever the input.
An op that is not in the table is element-wise if PyTorch tags it so; anything else pins its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fxprune.shadow.contractions import (
    convolve,
    convolve_constants,
    look_up,
    multiply,
    multiply_constants,
)
from fxprune.shadow.elements import (
    cast_constant,
    compute_elements,
    copy_constant,
    fill_like,
    keep_constant,
    keep_first,
    make_anew,
    overwrite,
    pin_inputs,
    restride,
    tie_elements,
    unknown,
)
from fxprune.shadow.ids import IdTable
from fxprune.shadow.moves import concatenate, concatenate_constants, move_constants, move_ids, pad_constants, pad_ids
from fxprune.shadow.picks import is_pick, pick_constants, pick_ids, put_ids
from fxprune.shadow.reductions import (
    add_patches,
    cut_triangle,
    gate_half,
    gather_patches,
    join_parts_of_complex,
    normalise_batch,
    normalise_batch_constants,
    normalise_groups,
    normalise_layer,
    pool,
    pool_constants,
    reduce,
    reduce_constants,
    sample_grid,
    scan,
    split_complex,
    transform,
)
from fxprune.shadow.tensor import Call, Constant, Ids

aten = torch.ops.aten


class Rule(NamedTuple):
    """What an op does to ids and to constants, and whether it only moves elements."""

    ids: Callable[[IdTable, Call], list[Ids]]
    constants: Callable[[Call], list[Constant | None]]
    moves: bool = False
    counts: bool = True  # whether numbers among its arguments may be numbers of channels


def find_rule(call: Call) -> Rule:
    """Look up the rule of an ATen call; an in-place op follows the rule of its functional form."""
    op, packet = call.op, call.op.overloadpacket
    if is_pick(call):
        return PICK
    if packet not in TABLE:
        packet = call.functional
    if packet in TABLE:
        return TABLE[packet]
    if torch.Tag.pointwise in op.tags:
        return ELEMENTWISE
    return UNKNOWN


ELEMENTWISE = Rule(tie_elements, compute_elements, counts=False)
SAME = Rule(keep_first, keep_constant)
MOVE = Rule(move_ids, move_constants, moves=True)
JOIN = Rule(concatenate, concatenate_constants, moves=True)
PICK = Rule(pick_ids, pick_constants, counts=False)
PAD = Rule(pad_ids, pad_constants, moves=True)
POOL = Rule(pool, pool_constants, counts=False)
REDUCE = Rule(reduce, reduce_constants, counts=False)
SCAN = Rule(scan, unknown, counts=False)
BATCH_NORM = Rule(normalise_batch, normalise_batch_constants, counts=False)
LIKE = Rule(keep_first, fill_like)
UNKNOWN = Rule(pin_inputs, unknown)

FAMILIES: list[tuple[Rule, str]] = [
    (Rule(convolve, convolve_constants), "convolution _convolution"),
    (Rule(multiply, multiply_constants, counts=False), "mm addmm"),
    (Rule(multiply, unknown, counts=False), "bmm baddbmm"),
    (Rule(keep_first, keep_constant, moves=True), "clone contiguous detach alias lift_fresh lift"),
    (Rule(keep_first, cast_constant, moves=True), "_to_copy to"),
    (MOVE, "view _unsafe_view reshape permute transpose t expand slice select split split_with_sizes chunk unbind"),
    (MOVE, "squeeze unsqueeze flip roll index index_select pixel_shuffle pixel_unshuffle channel_shuffle repeat"),
    (MOVE, "diagonal movedim unflatten flatten narrow unfold unsafe_split"),
    (PICK, "gather"),
    (Rule(put_ids, unknown, counts=False), "scatter scatter_add scatter_reduce index_add index_copy index_put"),
    (JOIN, "cat stack"),
    (PAD, "constant_pad_nd"),
    (Rule(overwrite, copy_constant, moves=True), "copy"),
    (LIKE, "zeros_like ones_like full_like empty_like rand_like randn_like zero fill new_empty_like bernoulli"),
    (Rule(make_anew, fill_like), "new_zeros new_ones new_full new_empty new_empty_strided"),
    (Rule(keep_first, unknown), "native_dropout uniform normal random"),
    (Rule(restride, keep_constant), "as_strided"),
    (ELEMENTWISE, "complex polar"),
    (ELEMENTWISE, "hardswish hardsigmoid masked_fill _prelu_kernel prelu hardtanh relu6 where clamp"),
    (POOL, "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d"),
    (POOL, "avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool1d"),
    (POOL, "adaptive_max_pool2d adaptive_max_pool3d reflection_pad1d reflection_pad2d reflection_pad3d"),
    (POOL, "replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d"),
    (POOL, "upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_trilinear3d"),
    (POOL, "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"),
    (REDUCE, "mean sum amax amin var var_mean std std_mean prod any all norm linalg_vector_norm logsumexp max min"),
    (REDUCE, "argmax argmin nansum median"),
    (SCAN, "_softmax _log_softmax _safe_softmax softmax log_softmax cumsum cumprod sort logcumsumexp"),
    (Rule(scan, unknown), "topk"),
    (BATCH_NORM, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm"),
    (BATCH_NORM, "cudnn_batch_norm miopen_batch_norm _batch_norm_with_update _batch_norm_no_update"),
    (Rule(normalise_layer, unknown), "native_layer_norm"),
    (Rule(normalise_groups, unknown), "native_group_norm"),
    (Rule(gather_patches, unknown), "im2col"),
    (Rule(add_patches, unknown), "col2im"),
    (Rule(cut_triangle, unknown), "triu tril"),
    (Rule(gate_half, unknown), "glu"),
    (Rule(transform, unknown), "_fft_r2c _fft_c2r _fft_c2c"),
    (Rule(join_parts_of_complex, unknown), "view_as_complex"),
    (Rule(split_complex, unknown), "view_as_real"),
    (Rule(keep_first, unknown), "_conj conj_physical resolve_conj _neg_view resolve_neg"),
    (Rule(sample_grid, unknown), "grid_sampler_2d grid_sampler_3d"),
    (Rule(look_up, unknown), "embedding"),
]

TABLE: dict[Any, Rule] = {}
for _rule, _names in FAMILIES:
    for _name in _names.split():
        if not hasattr(aten, _name):
            continue  # an op of another version of PyTorch
        if getattr(aten, _name) in TABLE:
            raise ValueError(f"two rules for aten.{_name}")
        TABLE[getattr(aten, _name)] = _rule
