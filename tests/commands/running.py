"""How is a command run in a test, and what is a refusal?"""

from pathlib import Path

from typer.testing import CliRunner, Result

from fxprune.cli import app


def run(*arguments: str | Path) -> Result:
    """Run `fxprune` with these arguments."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result: Result, *words: str) -> None:
    """One sentence on stderr with these words, nothing on stdout, and 2."""
    assert result.exit_code == 2
    assert [word for word in words if word not in result.stderr] == []
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout
