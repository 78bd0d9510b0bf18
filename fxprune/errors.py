"""What fxprune says when it refuses: one class per kind of refusal, each message a sentence that says what to do."""


class FxpruneError(Exception):
    """Anything that fxprune refuses to do."""


class TraceError(FxpruneError):
    """The model's code cannot be turned into a graph; the message names the file and line."""


class GuardViolated(FxpruneError):
    """The traced model was run in a way that its Python code would have treated differently."""


class ExactnessError(FxpruneError):
    """A converted or exported model does not compute what its source computes."""


class PatternError(FxpruneError, ValueError):
    """A pattern in `exclude` matches nothing, or is of no known kind."""


class TargetError(FxpruneError, ValueError):
    """A target outside of its range, or one that cannot be reached."""


class OptimizerError(FxpruneError, ValueError):
    """The optimizer does not hold the parameters of the prepared model."""


class StateError(FxpruneError, RuntimeError):
    """A state dict that does not fit the model into which it is loaded."""


class ExportError(FxpruneError):
    """The file could not be written, or the runtime refuses it."""


class NothingMeasured(ExportError):
    """No runtime that was asked for could measure anything; the message gives the reason of each."""


class RuntimeUnavailable(ExportError):
    """A runtime that is not installed here, or has no device; the message says which, and how to get it."""


class PlanError(FxpruneError):
    """A file of a converted model that cannot be written, or does not fit the model that is to become it."""


class IntoError(FxpruneError):
    """The class of the original cannot hold the converted model; the message names the first node that is why."""


class ReportError(FxpruneError):
    """A report that cannot be made, read or written."""
