"""How does a command end? With 0, with 2 where something is refused, and with 3 where a check of the result failed."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from fxprune.commands.spelling import list_options, speak_options
from fxprune.errors import ExactnessError, FxpruneError, NothingMeasured

REFUSED, CHECK_FAILED = 2, 3

CODES = (
    f"Exit codes: 0 done, {REFUSED} refused (a sentence on stderr says why), {CHECK_FAILED} a check failed, or a "
    "runtime that was asked for was not measured."
)


def end_in_a_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command show an error of fxprune as one sentence on stderr, without traceback, and exit with its code."""
    options = list_options(command)

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except FxpruneError as error:
            typer.echo(f"fxprune: {speak_options(str(error), options)}", err=True)
            failed = isinstance(error, (ExactnessError, NothingMeasured))
            raise typer.Exit(CHECK_FAILED if failed else REFUSED) from error

    return run


def require_writable(*paths: Path | None, read: Iterable[Path | None] = ()) -> None:
    """Refuse files that could not be written later, or twice, before the time is spent; what stands in them stays.

    `read` are files that the command reads, and that therefore must not be written.
    """
    given = [path for path in paths if path is not None]
    places = [path.resolve() for path in given]
    sources = {path.resolve() for path in read if path is not None}
    for path in given:
        if path.resolve() in sources:
            raise FxpruneError(f"{path} is read by this command, which would overwrite it; give another file to write")
        if places.count(path.resolve()) > 1:
            raise FxpruneError(f"{path} is given for two files, and one would overwrite the other; give another file")
        is_new = not path.exists()
        try:
            with path.open("a", encoding="utf-8"):
                pass
        except OSError as error:
            raise FxpruneError(f"{path}: cannot be written ({error.strerror}); give another file") from error
        if is_new:
            path.unlink()
