"""The site of `make docs`: what its hooks do, what is on its pages, and that the build is strict."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


griffe = pytest.importorskip("griffe")
yaml = pytest.importorskip("yaml")

import showo_hf  # noqa: E402


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))
import docstrings  # noqa: E402
import hooks  # noqa: E402


PACKAGE = {
    "__init__.py": '"""A package."""\nfrom .shapes import Circle\n',
    "shapes.py": '''
import numpy

class Shape:
    def area(self):
        """Its size."""

class Circle(Shape):
    """
    See [`area`], [`~Circle.area`], [`colours.mix`], [`numpy.pi`] and [a link](https://example.org).

    Args:
        radius (`float`): of pixels.
        points (`list` of 2 numbers): where it is.
        name (`str`, *optional*): its name.
    """
    def __init__(self, radius: float, points: list, name=None):
        """Refers to [`nothing`] and [`twice`]."""
''',
    "colours.py": 'def mix():\n    """Mix."""\ndef twice():\n    """Once."""\n',
    "mix.py": 'def twice():\n    """Again."""\n',
}


@pytest.fixture
def package(tmp_path):
    (tmp_path / "shaped").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "shaped" / name).write_text(text, encoding="utf-8")
    return griffe.load("shaped", search_paths=[tmp_path], try_relative_path=False, allow_inspection=False)


def test_names_in_docstrings_become_links(package):
    names = docstrings.Names(package)
    circle = names.by_path["shaped.shapes.Circle"]
    text, problems = docstrings.rewrite(circle.docstring.value, circle, names)
    assert not problems
    assert re.findall(r'identifier="(.*?)"><code>(.*?)</code>', text) == [
        ("shaped.shapes.Shape.area", "area"),
        ("shaped.shapes.Shape.area", "area"),
        ("shaped.colours.mix", "colours.mix"),
        ("numpy.pi", "numpy.pi"),
    ]
    assert "[a link](https://example.org)" in text


def test_what_only_repeats_the_signature_is_left_out(package):
    names = docstrings.Names(package)
    circle = names.by_path["shaped.shapes.Circle"]
    text, _ = docstrings.rewrite(circle.docstring.value, circle, names)
    assert [line.strip() for line in text.splitlines()[-3:]] == [
        "radius: of pixels.",
        "points: (`list` of 2 numbers) where it is.",
        "name: (`str`, *optional*) its name.",
    ]


def test_names_that_do_not_exist_or_are_not_unique_are_reported(package):
    names = docstrings.Names(package)
    init = names.by_path["shaped.shapes.Circle.__init__"]
    _, problems = docstrings.rewrite(init.docstring.value, init, names)
    assert problems == [
        "`nothing`, which does not exist",
        "`twice`, which may be shaped.colours.twice, shaped.mix.twice",
    ]


def test_links_lead_to_pages_and_fenced_code_stays(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.py").touch()
    found = []
    markdown = "[a](docs/b.md#c) [r](recipes/a.py) [w](https://x.org/y) [n](none.py)\n```\n[k](docs/b.md)\n```\n"
    rewritten = hooks.rewrite_links(markdown, "index.md", tmp_path, found.append)
    expected = "[a](b.md#c) [r](source/recipes/a.py.md) [w](https://x.org/y) [n](none.py)\n```\n[k](docs/b.md)\n```\n"
    assert rewritten == expected
    assert found == ["recipes/a.py"]
    assert hooks.rewrite_links("[h](../README.md#gpu)", "guide.md", tmp_path) == "[h](index.md#gpu)"
    assert hooks.rewrite_links("[h](../guide.md)", "reference/x.md", tmp_path) == "[h](../guide.md)"


def documented() -> list[str]:
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    return [
        name for page in pages for name in re.findall(r"^::: (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def test_every_public_name_is_on_one_page_of_the_reference():
    names = documented()
    assert len(names) == len(set(names))
    assert {f"showo_hf.{name}" for name in showo_hf.__all__} <= set(names)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/]+\.md", text.split("\nnav:")[1]))
    docs = ROOT / "docs"
    assert listed == {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} | set(hooks.ROOT_PAGES)


def build(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of what the site is made of, without the weights of the embedded model."""
    root = tmp_path_factory.mktemp("repository")
    names = "src pipelines conversion docs recipes benchmarks tests mkdocs.yml".split()
    names += "README.md CONTRIBUTING.md CHANGELOG.md LICENSE NOTICE".split()
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "golden")
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, root)
    return root


@pytest.mark.slow
def test_the_site_is_built_with_all_public_names(copy):
    done = build(copy)
    assert done.returncode == 0, done.stderr[-3000:]
    site = copy / "build" / "site"
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    for name in showo_hf.__all__:
        assert f'id="showo_hf.{name}"' in pages, name
    assert 'id="showo_hf.ShowoT2IPipeline.__call__"' in pages
    assert "[`" not in re.sub(r"<pre.*?</pre>", "", pages, flags=re.DOTALL)
    formulas = (site / "mathematics.html").read_text(encoding="utf-8")
    assert "<math" in formulas and "arithmatex" not in formulas
    assert (site / "source" / "NOTICE.html").is_file()
    assert not any(site.rglob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "addition", "message"),
    [
        ("docs/samplers.md", "\n[gone](gone.md)\n", "gone.md"),
        ("docs/samplers.md", "\n[gone](training.md#gone)\n", "training.md#gone"),
        ("README.md", "\n[gone](docs/gone.md)\n", "gone.md"),
        ("docs/samplers.md", "\n[gone][showo_hf.Gone]\n", "showo_hf.Gone"),
        ("docs/reference/utilities.md", "\n::: showo_hf.Gone\n", "showo_hf.Gone"),
        ("pipelines/masks.py", '\n\ndef added():\n    """See [`Gone`]."""\n', "`Gone`, which does not exist"),
    ],
)
def test_a_broken_link_or_an_unknown_name_fails(copy, file, addition, message):
    before = (copy / file).read_text(encoding="utf-8")
    try:
        (copy / file).write_text(before + addition, encoding="utf-8")
        done = build(copy)
    finally:
        (copy / file).write_text(before, encoding="utf-8")
    assert done.returncode != 0
    assert message in done.stderr
