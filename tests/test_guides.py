"""Whether the guides run as they stand, and name only what there is."""

import re
from pathlib import Path

import pytest

import fxprune

DOCS = Path(__file__).parent.parent / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_blocks_of_a_guide_run(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "".join(re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.S))
    assert source
    monkeypatch.chdir(tmp_path)
    exec(compile(source, str(guide), "exec"), {"__name__": guide.stem})


@pytest.mark.parametrize("page", [*GUIDES, DOCS / "migration.md"], ids=lambda page: page.stem)
def test_every_name_of_fxprune_is_there(page: Path) -> None:
    names = set(re.findall(r"fxprune\.((?:export\.)?[A-Za-z_]+)\(", page.read_text(encoding="utf-8")))
    assert names
    missing = [name for name in names if not hasattr(fxprune.export if "." in name else fxprune, name.split(".")[-1])]
    assert missing == []


@pytest.mark.parametrize("page", [*GUIDES, DOCS.parent / "README.md"], ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
