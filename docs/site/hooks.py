"""
What MkDocs itself does not do for this site (https://www.mkdocs.org/user-guide/configuration/#hooks).

- README.md, CONTRIBUTING.md and CHANGELOG.md lie outside of `docs`, and become pages.
- A link to a source file becomes a link to a page that shows it.
- A formula becomes MathML, so that pages need no script. Its font is part of the site, as few systems have one.
- `build/reference` gets the installed layout of the package, which griffe reads.
"""

import html
import importlib.resources
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page


#: Pages made of files beside `docs`.
ROOT_PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
#: Folders of the package, by the name they have when installed. setup.cfg has the same mapping.
PACKAGE_FOLDERS = {"": "src/showo_hf", "pipelines": "pipelines", "conversion": "conversion"}
LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
FENCE = re.compile(r"(^ *(?P<marks>`{3,}).*?^ *(?P=marks)`* *$)", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def root_of(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


@event_priority(100)  # before mkdocstrings, which ignores folders that are not there
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Link the package's folders into the installed layout, since griffe cannot follow `package_dir` of setup.cfg."""
    root = root_of(config)
    package = root / "build" / "reference" / "showo_hf"
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        old.unlink()
    for name, folder in PACKAGE_FOLDERS.items():
        for path in [root / folder] if name else (root / folder).iterdir():
            if path.name != "__pycache__":
                (package / path.name).symlink_to(path)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made of files beside `docs`, pages of the source files that pages link to, and a font of formulas."""
    root = root_of(config)
    for uri, name in ROOT_PAGES.items():
        files.append(File.generated(config, uri, content=(root / name).read_text(encoding="utf-8")))
    font = importlib.resources.files("ziamath.fonts") / "STIXTwoMath-Regular.ttf"
    files.append(File.generated(config, "site/math.ttf", abs_src_path=str(font)))
    sources = {}
    for file in list(files.documentation_pages()):
        rewrite_links(
            file.content_string, file.src_uri, root, lambda path: sources.setdefault(source_page(path), path)
        )
    for uri, path in sources.items():
        language = "python" if path.endswith(".py") else "text"
        text = (root / path).read_text(encoding="utf-8")
        content = f"# {path}\n\n``````{language}\n{text}\n``````\n"
        files.append(File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead where their targets are in the site."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    return rewrite_links(markdown, page.file.src_uri, root_of(config))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the formulas of a page by MathML."""

    def mathml(match: re.Match) -> str:
        display = "inline" if match["kind"] == "(" else "block"
        return convert(html.unescape(match["latex"]), display=display)

    return FORMULA.sub(mathml, content)


def source_page(path: str) -> str:
    """The address of the page that shows the source file `path`."""
    return f"source/{path}.md"


def rewrite_links(markdown: str, uri: str, root: Path, found: Callable[[str], object] | None = None) -> str:
    """
    Replace links relative to the file that a page is made of by links relative to the page.

    Args:
        markdown: text of the page. Fenced code stays as it is.
        uri: address of the page.
        root: folder of the repository.
        found: is called with each file outside of `docs` that a link leads to, as a path relative to `root`.

    Links that lead nowhere stay as they are, and MkDocs reports them.
    """
    folder = posixpath.dirname(ROOT_PAGES.get(uri, f"docs/{uri}"))
    page_of = {name: page for page, name in ROOT_PAGES.items()}

    def replaced(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, match["target"]))
        if path.startswith("docs/"):
            target = path.removeprefix("docs/")
        elif path in page_of:
            target = page_of[path]
        elif not path.startswith("..") and os.path.isfile(root / path):
            target = source_page(path)
            if found is not None:
                found(path)
        else:
            return match[0]
        return posixpath.relpath(target, posixpath.dirname(uri) or ".") + (match["anchor"] or "")

    # `split` gives text, fence, the fence's marks, text, ...
    parts = FENCE.split(markdown)
    return "".join(LINK.sub(replaced, part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 < 2)
