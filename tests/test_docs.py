"""The pages keep up with the code."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STRUCTURE = (ROOT / "docs" / "structure.md").read_text()


def section(room: str) -> str:
    return STRUCTURE.split(f"\n## {room}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("room", ["gateway", "scheduler", "engine", "bench", "chat"])
def test_every_module_is_on_the_map_and_nothing_else(room: str) -> None:
    files = (path.relative_to(ROOT / room) for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py")
    modules = {".".join(path.with_suffix("").parts) for path in files}
    assert set(re.findall(r"`([\w.]+)`", section(room))) == modules


def test_the_map_is_short_around_its_list_of_modules() -> None:
    assert len([line for line in STRUCTURE.splitlines() if not line.startswith("* ")]) < 80


def test_tests_that_the_seeds_page_names_are_there() -> None:
    page = (ROOT / "docs" / "seeds.md").read_text()
    named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page)
    assert named
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).exists(), (file, name)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target
