"""Is a traced model called as its original is, and does it refuse what its graph does not compute?"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import GuardViolated, TraceError

X, MASK, BIAS = torch.randn(2, 3, 8, 8), torch.rand(2, 1, 1, 1), torch.rand(2, 1, 1, 1)


class Choosing(nn.Module):
    """Does something else for each optional argument that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        scale: float = 2.0,
        *,
        both: bool = False,
    ) -> Any:
        inner = self.first(x).relu() * scale
        if mask is not None:
            inner = inner * mask
        if bias is not None:
            inner = inner + bias
        return (self.last(inner), inner.mean()) if both else self.last(inner)


class Outer(nn.Module):
    """Can be traced in parts only."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Choosing()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor = self.inner(x, None, bias, both=False)
        return out if float(out.detach().sum()) > 0 else out + 1


@pytest.mark.parametrize(
    ("example", "calls"),
    [
        ((X,), [((X,), {}), ((X, None), {}), ((X,), {"mask": None, "both": False}), ((X, None, None, 2.0), {})]),
        ((X, None), [((X, None), {}), ((X,), {}), ((X,), {"scale": 2.0, "bias": None})]),
        ({"x": X, "bias": BIAS}, [((X, None, BIAS), {}), ((), {"x": X, "bias": BIAS}), ((X,), {"bias": BIAS})]),
        ((X, MASK, BIAS, 3.0), [((X, MASK, BIAS, 5.0), {}), ((X, MASK, BIAS), {}), ((X, MASK), {"bias": BIAS})]),
        ({"x": X, "both": True}, [((X,), {"both": True}), ((X, None), {"both": True})]),
    ],
)
def test_calls_that_the_graph_computes_are_taken_in_every_form(example: Any, calls: Any) -> None:
    model = Choosing()
    prepared = fxprune.prepare(model, example)
    compact = fxprune.convert(prepared)
    for args, kwargs in calls:
        wanted = model(*args, **kwargs)
        torch.testing.assert_close(prepared(*args, **kwargs), wanted)
        torch.testing.assert_close(compact(*args, **kwargs), wanted)


@pytest.mark.parametrize(
    ("example", "args", "kwargs", "name"),
    [
        ((X,), (X, MASK), {}, "mask"),
        ((X,), (X,), {"bias": BIAS}, "bias"),
        ((X,), (X,), {"scale": 3.0}, "scale"),
        ((X,), (X,), {"both": True}, "both"),
        ((X, None), (X, MASK), {}, "mask"),
        ({"x": X, "bias": BIAS}, (X, BIAS), {}, "mask"),  # which was taken for the bias
        ((X, MASK), (X,), {}, "mask"),
        ((X, MASK), (X, None), {}, "mask"),
    ],
)
def test_calls_for_which_the_code_takes_another_way_are_refused(
    example: Any, args: Any, kwargs: Any, name: str
) -> None:
    prepared = fxprune.prepare(Choosing(), example)
    for model in (prepared, fxprune.convert(prepared)):
        with pytest.raises(GuardViolated, match=f"Choosing: the argument `{name}` was .* example_inputs"):
            model(*args, **kwargs)


def test_what_no_argument_is_called_stays_an_error_of_the_call() -> None:
    prepared = fxprune.prepare(Choosing(), X)
    with pytest.raises(TypeError, match="bogus"):
        prepared(X, bogus=1)
    with pytest.raises(TypeError, match="x"):
        prepared()
    with pytest.raises(TypeError, match="x"):
        prepared(X, x=X)
    with pytest.raises(TypeError, match="positional"):
        prepared(X, None, None, 2.0, False)
    with pytest.raises(TraceError, match=r"Choosing\.forward.* does not take these example inputs"):
        fxprune.prepare(Choosing(), (X, None, None, 2.0, True))


def test_parts_that_are_traced_alone_refuse_too() -> None:
    model = Outer().eval()
    prepared = fxprune.prepare(model, X)
    assert prepared.untraced
    torch.testing.assert_close(prepared(X), model(X))
    with pytest.raises(GuardViolated, match="`bias`"):
        prepared(X, BIAS)


def test_conversion_takes_inputs_in_another_form_than_preparation() -> None:
    prepared = fxprune.prepare(Choosing(), {"x": X, "bias": BIAS})
    compact = fxprune.convert(prepared, (X, None, BIAS))
    torch.testing.assert_close(compact(X, None, BIAS), prepared.eval()(X, bias=BIAS))
    with pytest.raises(TraceError, match="`bias`"):
        fxprune.convert(prepared, X)


def test_optional_arguments_cost_the_compiler_no_break() -> None:
    prepared = fxprune.prepare(Choosing(), X)
    compiled = torch.compile(prepared, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, None, scale=2.0), prepared(X))


def test_a_model_with_optional_arguments_is_exported(tmp_path: Any) -> None:
    compact = fxprune.convert(fxprune.prepare(Choosing(), {"x": X, "bias": BIAS}))
    fxprune.export.to_onnx(compact, {"x": X, "bias": BIAS}, tmp_path / "a.onnx")
    fxprune.export.to_onnx(compact, (X, None, BIAS), tmp_path / "b.onnx")
    for name in ("a.onnx", "b.onnx"):
        assert fxprune.export.verify(compact, tmp_path / name, {"x": X, "bias": BIAS}).passed


class Open(Choosing):
    """Takes as many images as there are, and options by name."""

    def forward(self, x: Tensor, *more: Tensor, **options: Any) -> Tensor:
        inner = sum((self.first(t).relu() for t in more), self.first(x).relu())
        inner = inner * options["mask"] if "mask" in options else inner
        out: Tensor = self.last(inner)
        return out


def test_arguments_in_any_number_are_those_of_the_example() -> None:
    model = Open()
    prepared = fxprune.prepare(model, (X, X))
    torch.testing.assert_close(prepared(X, 2 * X), model(X, 2 * X))
    for args in ((X,), (X, X, X)):
        with pytest.raises(GuardViolated, match="Open: this call gives another number of arguments"):
            prepared(*args)
    with pytest.raises(GuardViolated, match="Open: the argument `mask` was not among the example inputs"):
        prepared(X, X, mask=MASK)
    named = fxprune.prepare(model, {"x": X, "mask": MASK})
    torch.testing.assert_close(named(X, mask=MASK), model(X, mask=MASK))
    torch.testing.assert_close(named(x=X, mask=MASK), model(X, mask=MASK))
    with pytest.raises(GuardViolated, match="`mask` was given in the example inputs"):
        named(X)


class Inside(Choosing):
    """Finds its optional arguments inside of others."""

    def forward(self, pair: Any, batch: dict[str, Any]) -> Tensor:
        x, mask = pair
        inner = self.first(x).relu()
        if mask is not None:
            inner = inner * mask
        if "bias" in batch and batch["bias"] is not None:
            inner = inner + batch["bias"]
        if batch.get("scale") is not None:
            inner = inner * batch["scale"]
        out: Tensor = self.last(inner)
        return out


@pytest.mark.parametrize(
    ("example", "other"),
    [
        (((X, None), {"bias": None}), ((X, MASK), {"bias": None})),
        (((X, None), {"bias": None}), ((X, None), {"bias": BIAS})),
        (((X, None), {"scale": None}), ((X, None), {"scale": BIAS})),
        (((X, None), {}), ((X, None), {"scale": BIAS})),
    ],
)
def test_what_is_missing_inside_of_an_argument_is_guarded(example: Any, other: Any) -> None:
    model = Inside()
    prepared = fxprune.prepare(model, example)
    torch.testing.assert_close(prepared(*example), model(*example))
    with pytest.raises(
        GuardViolated, match=r"test_arguments\.py:\d+ in forward: this was .* when the model was prepared"
    ):
        prepared(*other)
    with pytest.raises(
        GuardViolated, match=r"test_arguments\.py:\d+ in forward: this was .* when the model was prepared"
    ):
        fxprune.convert(prepared)(*other)
