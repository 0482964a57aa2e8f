"""The page in a real browser, with the embedded model: as a person would use it."""

import re
from pathlib import Path

import pytest
from PIL import Image


pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

from benchmarks.space_screenshots import FLAGS, TABS, draw, find_browser, open_tab, press, status_is  # noqa: E402


ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / "build" / "node_modules" / "axe-core" / "axe.min.js"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="there is no Chromium, and apt-get could not install it"),
]


@pytest.fixture(scope="session")
def browser():
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=find_browser(), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser, url):
    """Opens the page as a new visitor."""
    contexts = []

    def open_page(width=1280, height=900, query="", **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.goto(url + query)
        page.locator("html[data-listens]").wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()


def settled(page):
    """Wait until the page has drawn what was opened. Gradio then sets its components once more to their first values."""
    frames = "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 300)))"
    page.evaluate(f"() => new Promise(done => {frames})")


def few_steps(page, count=3):
    """Open the settings of the present tab, and choose a number of steps."""
    page.get_by_role("button", name="Settings").locator("visible=true").first.click()
    choose_number(page, "Steps", count)


def choose_number(page, label, number):
    """Type a number beside a slider, until it stays."""
    box = page.get_by_label(f"number input for {label}").locator("visible=true").first
    for _ in range(10):
        settled(page)
        box.fill(str(number))
        box.press("Tab")
        settled(page)
        if box.input_value() == str(number):
            return
    raise AssertionError(f"the number {number} of {label} does not stay")


def seed_of(page) -> str:
    return page.get_by_label("Seed of the first image").first.input_value()


def test_an_image_comes_out_of_its_masks_and_can_be_played_back(new_page):
    page = new_page()
    few_steps(page)
    draw(page, "a red apple to the left of a blue car", seed=None)
    slider = page.get_by_label("Step of the image, 1 to 3")
    frames = page.locator(".showo-frames img")
    assert frames.count() == 3
    assert [frames.nth(i).is_visible() for i in range(3)] == [False, False, True]
    slider.focus()
    page.keyboard.press("Home")
    assert [frames.nth(i).is_visible() for i in range(3)] == [True, False, False]
    assert (page.locator(".showo-time output").inner_text(), slider.get_attribute("aria-valuetext")) == ("1", "1")
    assert "after step 1 of 3" in frames.nth(0).get_attribute("alt")
    assert frames.nth(0).get_attribute("src") != frames.nth(2).get_attribute("src")


def test_opening_the_settings_leaves_the_seed_random_and_one_click_keeps_it(new_page):
    page = new_page()
    few_steps(page, 1)
    seeds = []
    for _ in range(2):
        draw(page, "an owl", seed=None)
        seeds.append(seed_of(page))
    assert seeds[0] != seeds[1]
    page.get_by_role("button", name="Keep this seed").click()
    playwright.expect(page.get_by_label("New seed each time").first).not_to_be_checked()
    draw(page, "an owl", seed=None)
    assert seed_of(page) == seeds[1]


def test_nothing_is_cut_off(new_page):
    page = new_page()
    few_steps(page, 1)
    choose_number(page, "Images", 2)
    draw(page, "an owl", seed=None)
    sizes = page.locator(".showo-results .grid-wrap").evaluate("e => [e.clientHeight, e.scrollHeight]")
    assert sizes[0] >= sizes[1] - 1
    for image in page.locator(".showo-results img").all():
        box, frame = image.bounding_box(), page.locator(".showo-results").bounding_box()
        assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1


def test_an_error_keeps_what_is_on_the_page(new_page):
    page = new_page()
    few_steps(page, 1)
    draw(page, "an owl", seed=None)
    source = page.locator(".showo-results img").first.get_attribute("src")
    page.get_by_label("What to show", exact=True).first.fill("   ")
    press(page, "Make")
    status_is(page, "Please write what the image should show.")
    image = page.locator(".showo-results img").first
    assert image.is_visible() and image.get_attribute("src") == source
    box = image.bounding_box()
    top = page.evaluate(
        "([x, y]) => document.elementFromPoint(x, y)?.closest('.showo-results') !== null",
        [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 - page.evaluate("window.scrollY")],
    )
    assert top or box["y"] > 900


def is_uncovered(page, field) -> bool:
    """Whether nothing lies over the middle of a field, such as a progress bar."""
    field.scroll_into_view_if_needed()
    box = field.bounding_box()
    at = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    return field.evaluate("(e, [x, y]) => document.elementFromPoint(x, y) === e", at)


def wait_until_idle(page, space):
    """Wait until the app has no job."""
    for _ in range(100):
        if not space.line.tickets():
            return
        page.wait_for_timeout(200)
    raise AssertionError("a job did not end")


def test_stop_in_the_middle_and_reload_in_the_middle(new_page, space):
    page = new_page()
    few_steps(page, 50)
    choose_number(page, "Images", 4)  # so many that a fast machine is not done when Stop is pressed
    page.get_by_label("What to show", exact=True).first.fill("an owl")
    press(page, "Make")
    status_is(page, "Step")
    assert is_uncovered(page, page.get_by_label("Seed of the first image").first)
    page.get_by_role("button", name="Stop", exact=True).first.click()
    status_is(page, "Stopped.")
    wait_until_idle(page, space)
    press(page, "Make")
    status_is(page, "Step")
    page.reload()
    page.get_by_role("tab", name="Create", exact=True).wait_for()
    wait_until_idle(page, space)


def draw_and_edit(page, prompt, steps):
    """Make an image in Create, and take it to Edit."""
    few_steps(page, steps)
    draw(page, prompt, seed=None)
    press(page, "Edit this image")
    status_is(page, "Ready.")


def paint_and_press(page, button, tries=5):
    """
    Paint a stroke over the editor's image and press the button, until the app has seen the stroke.

    The editor of Gradio reports a new image to the app; a stroke that is painted before the answer is lost.
    """
    for _ in range(tries):
        page.wait_for_timeout(1000)
        box = page.locator("canvas").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=8)
        page.mouse.up()
        page.wait_for_timeout(500)
        press(page, button)
        status_is(page, re.compile("Please paint over|Step|Done in"))
        if not page.locator(".showo-status:visible", has_text="Please paint over").is_visible():
            return


def test_an_image_goes_to_edit_and_to_ask(new_page):
    page = new_page()
    draw_and_edit(page, "a red apple to the left of a blue car", 8)
    settled(page)
    page.get_by_label("What the finished image should show").fill("a red apple to the left of a yellow bell")
    press(page, "Repaint")
    status_is(page, "Please paint over the part that should change.")
    paint_and_press(page, "Repaint")
    status_is(page, "Done in")
    page.locator(".showo-slider img").first.wait_for()
    open_tab(page, "Create")
    press(page, "Ask about this image")
    press(page, "Caption")
    page.locator(".bot.message").first.wait_for()
    status_is(page, "Ready.")


def test_a_painting_is_uploaded_by_its_own_tab_alone(new_page):
    page = new_page()
    draw_and_edit(page, "an owl", 3)
    sent = []
    page.on("request", lambda request: sent.append(request.url) if "/upload" in request.url else None)
    open_tab(page, "Create")
    draw(page, "an owl", seed=None)
    press(page, "Ask about this image")
    page.get_by_role("button", name="Caption").wait_for()
    assert not sent


def test_an_image_is_extended_and_varied(new_page):
    page = new_page(query="?prompt=an+owl&steps=2&seed=3")
    status_is(page, "The settings of the link are set.")
    press(page, "Make")
    status_is(page, "Done in")
    press(page, "Edit this image")
    status_is(page, "Ready.")
    settled(page)
    page.get_by_label("What the finished image should show").fill("an owl")
    few_steps(page, 2)
    slider = page.locator(".showo-slider img")
    sizes, shown = [], ""
    for name in ("Extend", "Vary"):
        page.get_by_role("tab", name=name, exact=True).click()
        press(page, name)
        page.wait_for_function(
            "old => { const image = document.querySelector('.showo-slider img');"
            " return image && image.src !== old && image.complete && image.naturalWidth; }",
            arg=shown,
        )
        status_is(page, "Done in")
        shown = slider.first.get_attribute("src")
        sizes.append({tuple(one.evaluate("e => [e.naturalWidth, e.naturalHeight]")) for one in slider.all()})
    ((wide, high),), ((width, height),) = sizes
    assert wide == 1.5 * width and high == height == width


def test_two_samplers_are_compared(new_page):
    page = new_page()
    open_tab(page, "Compare")
    settled(page)
    for letter in "AB":
        box = page.get_by_label(f"number input for Steps {letter}")
        box.fill("2")
        box.press("Tab")
    page.get_by_label("What to show", exact=True).locator("visible=true").fill("a dog above a cat at night")
    press(page, "Compare")
    status_is(page, "Done: A")
    images = [page.locator(f".showo-stage img[alt^='{letter}: a dog above a cat at night']").last for letter in "AB"]
    assert all(image.is_visible() for image in images)
    assert images[0].get_attribute("src") != images[1].get_attribute("src")
    page.get_by_role("button", name="Ask about image B").click()
    page.get_by_role("button", name="Caption").wait_for()
    page.locator("#showo-ask-image img").first.wait_for()


def test_a_conversation_shows_images(new_page):
    page = new_page()
    open_tab(page, "Chat")
    settled(page)
    page.locator("#showo-chat-box textarea").fill("show me a red apple.")
    page.keyboard.press("Enter")
    status_is(page, "Step")
    status_is(page, "Ready.")
    assert page.locator(".bot.message img").count() >= 1


def test_a_file_that_is_no_image_is_refused_on_upload(new_page, tmp_path):
    (tmp_path / "file.png").write_bytes(b"no image")
    page = new_page()
    open_tab(page, "Ask")
    page.locator("#showo-ask-image input[type=file]").first.set_input_files(tmp_path / "file.png")
    status_is(page, "This file cannot be read as an image.")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    page.locator("#showo-ask-image input[type=file]").first.set_input_files(tmp_path / "red.png")
    page.locator("#showo-ask-image img").first.wait_for()  # and not its name only


def test_a_link_holds_the_settings(new_page):
    page = new_page(query="?prompt=an+owl&steps=5&seed=11")
    status_is(page, "The settings of the link are set.")
    assert page.get_by_label("What to show", exact=True).first.input_value() == "an owl"
    page.get_by_role("button", name="Settings").first.click()
    assert seed_of(page) == "11"


def test_a_chosen_sampler_brings_its_own_temperature(new_page):
    page = new_page(query="?prompt=an+owl&sampler=remasking&temperature=2.5")
    status_is(page, "The settings of the link are set.")
    page.get_by_role("button", name="Settings").locator("visible=true").first.click()
    settled(page)
    box = page.get_by_label("number input for Temperature").locator("visible=true").first
    assert box.input_value() == "2.5", "the one of the link"
    page.get_by_label("Sampler", exact=True).locator("visible=true").first.click()
    page.get_by_role("option", name="halton", exact=True).click()
    settled(page)
    assert box.input_value() == "1"


def test_two_visitors_at_once(new_page):
    one, two = new_page(), new_page()
    for page in (one, two):
        few_steps(page, 4)
        page.get_by_label("What to show", exact=True).first.fill("an owl")
    for page in (one, two):
        press(page, "Make")
    for page in (one, two):
        status_is(page, "Done in")
    assert seed_of(one) != seed_of(two)


def tab_to(page, name, most=40):
    """Press Tab until an element of this name has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        element = "document.activeElement"
        if name in page.evaluate(f"[{element}.innerText?.trim(), {element}.ariaLabel, {element}.placeholder]"):
            return
    raise AssertionError(f"Tab does not lead to {name}")


def test_the_keyboard_is_enough(new_page, space):
    page = new_page(query="?prompt=a+cat&steps=2&seed=3")
    status_is(page, "The settings of the link are set.")
    example = space.facts.examples[0]
    tab_to(page, example)  # the box for the words, by its placeholder
    page.keyboard.press("Control+a")
    page.keyboard.type("an owl")
    tab_to(page, "Make")
    page.keyboard.press("Enter")
    status_is(page, "Done in")
    tab_to(page, "Step of the image, 1 to 2")
    page.keyboard.press("Home")
    assert page.get_by_alt_text("an owl after step 1 of 2").is_visible()
    page.get_by_role("tab", name="Create", exact=True).focus()
    tab_to(page, "Ask")
    page.keyboard.press("Enter")
    tab_to(page, space.facts.questions[-1])
    page.keyboard.type("what is this?")
    page.keyboard.press("Enter")
    status_is(page, "Please choose an image.")


@pytest.mark.parametrize("tab", TABS)
def test_a_phone_shows_everything(new_page, tab):
    page = new_page(390, 844)
    open_tab(page, tab)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_phone_scrolls_to_what_is_made(new_page):
    page = new_page(390, 844, query="?prompt=an+owl&steps=3&seed=3")
    status_is(page, "The settings of the link are set.")
    stage = page.locator(".showo-stage-box").first
    assert stage.bounding_box()["y"] > 844
    press(page, "Make")
    page.wait_for_function(
        "stage => { const { top } = stage.getBoundingClientRect(); return top >= 0 && top < window.innerHeight / 2; }",
        arg=stage.element_handle(),
    )
    status_is(page, "Done in")


@pytest.mark.skipif(not AXE.is_file(), reason="there is no axe-core, and npm could not install it")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", TABS)
def test_axe_finds_no_serious_fault(new_page, tab, scheme):
    page = new_page(color_scheme=scheme)
    open_tab(page, tab)
    page.wait_for_timeout(800)
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert not serious, "\n".join(
        f"{one['id']}: {node['html'][:160]} {node['failureSummary'][:200]}" for one in serious for node in one["nodes"]
    )
