"""Pictures of unfinished images, maps, and the HTML of the stage and the status line."""

import asyncio
import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import nn


pytest.importorskip("gradio")

from showo_hf import EMBEDDED_MODEL  # noqa: E402
from showo_hf.app import model_card  # noqa: E402
from showo_hf.app.engine import Step  # noqa: E402
from showo_hf.app.previews import (  # noqa: E402
    LINES,
    MASKED,
    confidence_map,
    on_canvas,
    side_by_side,
    stage,
    status,
    to_uri,
    with_masked_cells,
)
from showo_hf.app.space import MAX_FRAMES, Film  # noqa: E402


def test_masked_cells_are_visible_and_the_others_unchanged():
    image = Image.new("RGB", (16, 8), "red")
    masked = np.array([[True, False]])
    pixels = np.array(with_masked_cells(image, masked))
    assert (pixels[:, 8:] == (255, 0, 0)).all()
    assert {tuple(one) for one in pixels[:, :8].reshape(-1, 3).tolist()} == {MASKED, LINES}


def test_a_map_gets_brighter_with_confidence():
    found = np.array(confidence_map(np.array([[0.0, 0.25, 0.5, 0.75, 1.0]]), 4).convert("L"))
    assert found.shape == (4, 20)
    assert (np.diff(found[0, ::4].astype(int)) > 0).all()


@pytest.mark.parametrize("count, size", [(1, (8, 6)), (2, (20, 6)), (3, (20, 16)), (4, (20, 16))])
def test_images_side_by_side(count, size):
    sheet = side_by_side([Image.new("RGB", (8, 6), (number, 0, 0)) for number in range(count)])
    assert sheet.size == size
    assert sheet.getpixel((size[0] - 1 if count % 2 == 0 else 0, size[1] - 1))[0] == count - 1


def test_an_image_on_a_larger_canvas():
    sheet = on_canvas(Image.new("RGB", (4, 4), "red"), (8, 8), (8, 0), (16, 8))
    assert sheet.getpixel((0, 0)) == MASKED and sheet.getpixel((12, 4)) == (255, 0, 0)


def test_an_address_holds_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    head, data = to_uri(image).split(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as found:
        assert np.array_equal(np.array(found.convert("RGB")), np.array(image))


def test_the_stage_shows_the_newest_frame_and_afterwards_a_time_line():
    frames = {1: ("data:1", "one"), 2: ("data:2", "two"), 3: ("data:3", "three")}
    running = stage(frames)
    assert running.count("<img") == 1 and 'alt="three"' in running and "range" not in running
    done = stage(frames, ("data:map", "map"), finished=True)
    assert done.count("<img") == 4 and done.count("hidden") == 2
    assert re.search(r'<input type="range" min="1" max="3" value="3" aria-label="[^"]+"', done)


@pytest.mark.parametrize("count", [1, 2, MAX_FRAMES, MAX_FRAMES + 1, 4 * MAX_FRAMES + 7])
def test_a_long_film_keeps_few_frames_at_even_distances_and_the_newest(count):
    film, most = Film("a house"), 0

    async def steps():
        nonlocal most
        for number in range(1, count + 1):
            step = (number - 1) % 18 + 1  # windows begin anew
            shown = await film.add(Step(step, 18, number / count, Image.new("RGB", (2, 2), (number % 256, 0, 0))))
            most = max(most, len(film.frames))
            assert f"step {step} of 18" in shown and shown.count("<img") == 1

    asyncio.run(steps())
    assert most == min(count, MAX_FRAMES)
    kept = [int(number) for number in re.findall(r'data-step="(\d+)"', film.end())]
    assert kept[0] == 1 and kept[-1] == count and (len(kept) > MAX_FRAMES // 2 or len(kept) == count)
    assert {after - before for before, after in zip(kept[:-2], kept[1:-1], strict=True)} <= {film.stride}
    for number, (_, text) in film.frames.items():
        assert f"step {(number - 1) % 18 + 1} of 18" in text
    if count > 1:
        assert f"<output>{count}</output> of {count}" in film.end() and f'max="{len(kept)}"' in film.end()


def test_words_of_a_visitor_are_no_html():
    bad = '"><script>alert(1)</script>'
    assert "<script" not in status(bad) and "<script" not in stage({1: ("data:1", bad)})
    assert 'role="alert"' in status("x", "error") and 'role="status"' in status("x")


def test_the_line_about_the_model_comes_from_its_card(tmp_path):
    parts = {"model": nn.Linear(1000, 1400, bias=False), "image_decoder": nn.Linear(1000, 600, bias=False)}
    pipe = SimpleNamespace(components={**parts, "scheduler": None})
    folder = tmp_path / "my-model"
    folder.mkdir()
    facts = model_card.model_facts(str(folder), pipe)
    assert facts.name == "my-model" and facts.licence == "not stated"
    (folder / "README.md").write_text(
        "---\nlicense: mit\nwidget:\n- text: a blue house\n- {text: 'who lives here?', src: house.png}\n"
        "- messages: [{role: user, content: draw a house.}]\n- messages: [3]\n- text: 3\n- 3\n---\n\n# House model\n\n"
        "![x](y.png)\n\nIt draws houses. It knows nothing else.\n"
    )
    facts = model_card.model_facts(str(folder), pipe)
    assert facts.line(1.234, "CPU") == (
        "**House model**, 2 million weights. It draws houses. About 1.2 s an image on this CPU. Licence: mit."
    )
    assert facts.examples == ["a blue house"]
    assert facts.questions == ["who lives here?"] and facts.requests == ["draw a house."]


def test_the_embedded_model_names_its_examples():
    card = model_card.read_card(str(EMBEDDED_MODEL))
    prompts, questions, requests = model_card.listed(card.data.to_dict().get("widget"))
    assert len(prompts) == model_card.MOST and questions and requests
