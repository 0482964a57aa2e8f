"""The guides name tests as evidence, and each of them exists. No place of a figure is left empty."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
NAMED = {page.name: set(re.findall(r"`(test_\w+)`", page.read_text())) for page in sorted(ROOT.glob("docs/*.md"))}


@pytest.mark.parametrize("page", [page for page, names in NAMED.items() if names])
def test_every_named_test_exists(page):
    defined = {
        name for file in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)\(", file.read_text())
    }
    assert len(defined) > 100
    assert not NAMED[page] - defined


def test_the_page_of_the_formulas_names_its_tests():
    assert len(NAMED["mathematics.md"]) > 40


@pytest.mark.parametrize(
    "page", ["README.md", *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/**/*.md")))]
)
def test_no_figure_is_missing(page):
    """A marker such as @@seconds@@ stands where a figure has yet to be measured."""
    assert re.findall(r"@@(?:\w+@@)?", (ROOT / page).read_text(encoding="utf-8")) == []
