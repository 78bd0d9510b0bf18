"""What does an ONNX file say about the model that it was made from?"""

from importlib.metadata import version

from torch import nn

from fxprune.conversion_report import Report
from fxprune.model import TracedModel
from fxprune.saving.plan_text import digest_steps


def describe_model(model: nn.Module) -> dict[str, str]:
    """Return entries for the metadata: fxprune's version, the model's class, and of a converted model what made it.

    That is the digest of its plan (a model that `fxprune.load` returns has that of the one saved), method and target.
    """
    entries = {
        "fxprune.version": version("fxprune"),
        "fxprune.model": getattr(model, "class_name", type(model).__name__),
    }
    report = getattr(model, "report", None)
    if isinstance(report, Report):
        entries |= {"fxprune.method": report.method or "", "fxprune.target": report.target or ""}
    if isinstance(model, TracedModel) and model.steps:
        entries["fxprune.plan.sha256"] = digest_steps(model.steps)
    return {key: entry for key, entry in entries.items() if entry}
