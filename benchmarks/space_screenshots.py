"""
Screenshots of each tab of the Space, for docs: `python -m benchmarks.space_screenshots -o docs/images`.

It serves the embedded model here, and drives Debian's Chromium (or the one of `--browser`) with Playwright. `--looks light
dark phone` gives the other looks of the page too, and `--empty` each tab before it is used.
"""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: The editor draws with WebGL, here in software.
FLAGS = ["--no-sandbox", "--enable-unsafe-swiftshader", "--use-angle=swiftshader", "--ignore-gpu-blocklist"]
LOOKS = {"light": (1280, 900, False), "dark": (1280, 900, True), "phone": (390, 844, False)}  # width, height, dark
TABS = ("Create", "Edit", "Ask", "Chat", "Compare")
COLOURS = 256  # of a saved screenshot: a palette keeps the files small
TIMEOUT = 120_000  # milliseconds


def find_browser() -> str | None:
    """The path of an installed Chromium."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def served(warm_up: bool = True, **options) -> Iterator[str]:
    """Serve the embedded model. Gives the address of the page."""
    from showo_hf.app import SpaceOptions, build_demo, build_space, launch, load_pipeline  # takes seconds

    space = build_space(load_pipeline(), SpaceOptions(**options), warm_up=warm_up)
    demo = build_demo(space)
    _, url, _ = launch(demo, space, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        yield url
    finally:
        demo.close(verbose=False)


@contextmanager
def opened(url: str, browser: str, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Page]:
    """A page of a new browser."""
    with sync_playwright() as play:
        chromium: Browser = play.chromium.launch(executable_path=browser, args=FLAGS)
        try:
            scheme = "dark" if dark else "light"
            page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.set_default_timeout(TIMEOUT)
            page.goto(url)
            page.locator("html[data-listens]").wait_for(state="attached")
            yield page
        finally:
            chromium.close()


def status_is(page: Page, text: str) -> None:
    """Wait until a visible status line, written after the last [`press`], holds a text."""
    page.locator(".showo-status:not(.seen):visible", has_text=text).first.wait_for()


def press(page: Page, name: str) -> None:
    """Press a button. What the status lines say before does not count as its answer."""
    page.evaluate("document.querySelectorAll('.showo-status').forEach(line => line.classList.add('seen'))")
    page.get_by_role("button", name=name, exact=True).locator("visible=true").first.click()


def open_tab(page: Page, name: str) -> None:
    """Press a tab. A narrow page keeps some of them in a menu."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        page.locator(".overflow-menu button").first.click()
    tab.or_(page.locator(".overflow-dropdown button", has_text=name)).first.click()


def draw(page: Page, prompt: str, seed: int | None = 7) -> None:
    """Make an image in Create, and wait for it."""
    open_tab(page, "Create")
    if seed is not None and not page.get_by_label("Seed of the first image").first.is_visible():
        page.get_by_role("button", name="Settings").first.click()
        page.get_by_label("New seed each time").first.uncheck()
        page.get_by_label("Seed of the first image").first.fill(str(seed))
    page.get_by_label("What to show", exact=True).first.fill(prompt)
    press(page, "Make")
    status_is(page, "Done in")
    page.get_by_alt_text("Confidence map").wait_for()


def suggested(field: Locator) -> str:
    """What the page suggests to write into a field: it knows what its model can do."""
    return field.get_attribute("placeholder") or ""


def empty_tabs(page: Page) -> Iterator[str]:
    """Open each tab; gives a name for its picture."""
    for name in TABS:
        open_tab(page, name)
        page.wait_for_timeout(500)
        yield f"{name.lower()}-empty"


def visit_tabs(page: Page) -> Iterator[str]:
    """Use each tab once; gives its name when it is worth a picture."""
    prompt = suggested(page.get_by_label("What to show", exact=True).first)
    draw(page, prompt)
    page.mouse.move(0, 0)
    yield "create"
    press(page, "Edit this image")
    status_is(page, "Ready.")
    page.wait_for_timeout(500)
    page.get_by_label("What the finished image should show").fill(prompt)
    page.get_by_role("tab", name="Vary", exact=True).click()
    page.get_by_role("button", name="Vary", exact=True).click()
    status_is(page, "Done in")
    page.locator(".showo-slider img").first.wait_for()
    page.wait_for_timeout(500)
    yield "edit"
    page.get_by_role("button", name="Ask about this image").locator("visible=true").first.click()
    page.get_by_role("button", name="Caption").click()
    status_is(page, "Ready.")
    question = page.get_by_label("Question", exact=True)
    question.fill(suggested(question))
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator(".bot.message").nth(1).wait_for()
    status_is(page, "Ready.")
    yield "ask"
    open_tab(page, "Chat")
    message = page.locator("#showo-chat-box textarea")
    message.fill(suggested(message))
    message.press("Enter")
    status_is(page, "Step")
    status_is(page, "Ready.")
    page.wait_for_timeout(500)
    yield "chat"
    open_tab(page, "Compare")
    page.get_by_label("What to show", exact=True).locator("visible=true").fill(prompt)
    page.get_by_role("button", name="Compare", exact=True).click()
    status_is(page, "Done:")
    yield "compare"


def save(page: Page, path: Path) -> None:
    """Save the whole page once its images are there, with a palette."""
    page.wait_for_function("[...document.images].every(image => image.hidden || image.complete)")
    page.screenshot(path=path, full_page=True)
    with Image.open(path) as image:
        # The default method drops rare colours: a leaf in an image of the page would be grey.
        few = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images"), help="folder of the images")
    parser.add_argument(
        "--looks", nargs="+", choices=LOOKS, default=["light"], help="looks of the page (default: light)"
    )
    parser.add_argument("--empty", action="store_true", help="each tab before it is used, too")
    parser.add_argument("--url", help="a page that is served already")
    parser.add_argument("--browser", default=find_browser(), help="path of a Chromium")
    options = parser.parse_args(arguments)
    if options.browser is None:
        parser.error("there is no Chromium; name one with --browser")
    options.output.mkdir(parents=True, exist_ok=True)

    def take(url: str) -> None:
        for look in options.looks:
            ending = "" if look == "light" else f"-{look}"
            with opened(url, options.browser, *LOOKS[look]) as page:
                for name in chain(empty_tabs(page) if options.empty else (), visit_tabs(page)):
                    path = options.output / f"space-{name}{ending}.png"
                    save(page, path)
                    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)

    if options.url:
        take(options.url)
    else:
        with served() as url:
            take(url)


if __name__ == "__main__":
    main()
