"""The guides name tests as evidence. Each of them exists."""

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
