"""Whether the README's example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = "".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.S))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fxprune.export.pin_cores.count_cores", lambda: 2)  # it times with two threads
    exec(compile(example, str(README), "exec"), {})
    assert (tmp_path / "compact.onnx").stat().st_size > 0
    assert "units went" in capsys.readouterr().out


def test_every_file_of_the_map_is_there() -> None:
    root = README.parent
    named = re.findall(r"^\| (`[^|]+) \|", README.read_text(), re.M)
    paths = [path for cell in named for path in re.findall(r"`([\w/.]+)`", cell)]
    assert len(paths) > 8
    assert all((root / path).exists() or (root / "fxprune" / path).exists() for path in paths)
