"""`showo-hf generate`, run with the embedded model."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageSequence

from showo_hf import EMBEDDED_MODEL, ShowoDiffusionDecoder, cli
from showo_hf.commands import image_generation, image_steps, model_loading
from showo_hf.commands.files import replace_file
from showo_hf.commands.info import model_facts


PROMPT = "a red apple to the left of a blue car"
FAST = ("--steps", "4", "--device", "cpu", "--quiet")


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def trained_size() -> int:
    return model_facts(Path(EMBEDDED_MODEL))["image_size"]


# Usage


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--output"),
        ([PROMPT], "--output"),
        ([PROMPT, "-o", "scene"], ".png"),
        ([PROMPT, "-o", "scene.bmp"], "scene.bmp"),
        ([PROMPT, "-o", "missing/scene.png"], "missing"),
        ([PROMPT, "-o", "folder.png"], "folder"),
        ([PROMPT, "-o", "a.png", "--save-steps", "a.jpg"], "--save-steps"),
        ([PROMPT, "-o", "a.png", "--save-steps", "./a.png"], "--save-steps"),
        ([PROMPT, "-o", "a.png", "--steps", "0"], "--steps"),
        ([PROMPT, "-o", "a.png", "--steps", "two"], "--steps"),
        ([PROMPT, "-o", "a.png", "--num", "-1"], "--num"),
        ([PROMPT, "-o", "a.png", "--size", "0"], "--size"),
        ([PROMPT, "-o", "a.png", "--size", "64x"], "--size"),
        ([PROMPT, "-o", "a.png", "--guidance", "nan"], "--guidance"),
        ([PROMPT, "-o", "a.png", "--temperature", "hot"], "--temperature"),
        ([PROMPT, "-o", "a.png", "--seed", str(2**63)], "--seed"),
        ([PROMPT, "-o", "a.png", "--dtype", "int8"], "--dtype"),
        ([PROMPT, "-o", "a.png", "--device", "abacus"], "--device"),
        ([PROMPT, "-o", "a.png", "--model", "folder.png"], "model_index.json"),
        ([PROMPT, "-o", "a.png", "--model", "./missing"], "./missing"),
        ([PROMPT, "-o", "a.png", "--model", "nope"], "'nope'"),
        ([PROMPT, "-o", "a.png", "--model", "scene.png"], "'scene.png' is a file"),
        ([PROMPT, "-o", "a.png", "--model", "m" * 5000], "no folder 'mmm"),
        ([PROMPT, "-o", "a.png", "--dtype", "float16", "--device", "cpu"], "--dtype float16"),
        ([PROMPT, "-o", "a.png", "--size", "97"], "`--size` must be multiples of 8"),
        ([PROMPT, "-o", "a.png", "--size", "100000"], "at most 16384"),
        (
            [PROMPT, "-o", "a.png", "--size", "16384"],
            "`--size` must be at most 2,359,296 pixels in all, got 16384x16384",
        ),
        (
            [PROMPT, "-o", "a.webp", "--size", "96x16384"],
            "`--size` must be at most 16383 pixels a side for a .webp file, got 96x16384",
        ),
        ([PROMPT, "-o", "a.png", "--num", "1000000"], "from 1 to 100000"),
        ([PROMPT, "-o", "a.png", "--steps", "9" * 20], "from 1 to 10000"),
        ([PROMPT, "-o", "a.png", "--steps", "9" * 9000], "from 1 to 10000"),
        ([PROMPT, "-o", "a.png", "--seed", str(2**63 - 1), "--num", "2"], "`--seed` and `--num`"),
        ([PROMPT, "-o", "a.png", "--guidance", "1e38"], "from 0 to 1000"),
        ([PROMPT, "-o", "a" * 300 + ".png"], "File name too long"),
        ([PROMPT, "-o", "a.png/b.png"], "does not exist"),
        (["", "-o", "a.png"], "`prompt` must contain words, got ''"),
        (["  \n", "-o", "a.png"], "`prompt` must contain words"),
        (["an\0owl", "-o", "a.png"], "NUL"),
        (["caf\udce9", "-o", "a.png"], "UTF-8"),
        ([PROMPT, "-o", "a.png", "--negative-prompt", "caf\udce9"], "`--negative-prompt` must be text in UTF-8"),
        ([PROMPT, "-o", "a.png", "--prompts", "b.txt"], "not both"),
        (["-o", "a.png"], "a prompt is needed"),
    ],
)
def test_invalid_arguments_are_refused(arguments, named, refused):
    Path("folder.png").mkdir()
    Path("scene.png").touch()
    refused(["generate", *arguments], named)


# Steps


def three_frames() -> list[Image.Image]:
    return [Image.new("RGB", (24, 16), colour) for colour in ("red", "lime", "blue")]


def test_an_animation_pauses_on_its_last_frame():
    replace_file(Path("steps.gif"), partial(image_steps.save_steps, three_frames()))
    with Image.open("steps.gif") as film:
        frames = [
            (frame.convert("RGB").getpixel((0, 0)), frame.info["duration"]) for frame in ImageSequence.Iterator(film)
        ]
    usual, last = image_steps.FRAME_MILLISECONDS, image_steps.LAST_FRAME_MILLISECONDS
    assert frames == [((255, 0, 0), usual), ((0, 255, 0), usual), ((0, 0, 255), last)]


def test_a_strip_shows_the_frames_side_by_side():
    replace_file(Path("steps.png"), partial(image_steps.save_steps, three_frames()))
    strip = pixels("steps.png")
    assert strip.shape == (16, 3 * 24 + 2 * image_steps.STRIP_GAP, 3)
    assert [strip[0, column].tolist() for column in (0, 24, 26, 52)] == [
        [255, 0, 0], [255, 255, 255], [0, 255, 0], [0, 0, 255],
    ]  # fmt: skip


def test_step_images_are_the_finished_image_grey_where_tokens_are_masked():
    tokenizer = tiny.lfq()
    config = tokenizer.config
    height, width, mask = 3, 5, config.codebook_size
    last = torch.randint(0, config.codebook_size, (2, height, width))
    first, second = torch.full_like(last, mask), last.clone()
    second[:, 1, 2] = mask
    finished = [Image.new("RGB", (width * 4, height * 4), colour) for colour in ("red", "blue")]

    films = image_steps.step_images(tokenizer, [first, second, last], finished)

    assert [len(film) for film in films] == [3, 3]
    assert [film[-1] for film in films] == finished
    hidden = np.zeros((height * 4, width * 4), dtype=bool)
    hidden[4:8, 8:12] = True
    for film, image in zip(films, finished, strict=True):
        assert (np.asarray(film[0]) == 128).all()
        shown = np.asarray(film[1])
        assert (shown[hidden] == 128).all() and (shown[~hidden] == np.asarray(image)[~hidden]).all()


def test_step_images_of_tokens_that_change_later_are_decoded():
    tokenizer = tiny.lfq()
    last = torch.randint(0, tokenizer.config.codebook_size, (1, 3, 5))
    before = last.clone()
    before[0, 0, 0] = (last[0, 0, 0] + 1) % tokenizer.config.codebook_size
    finished = Image.new("RGB", (20, 12), "red")

    ((frame, end),) = image_steps.step_images(tokenizer, [before, last], [finished])

    with torch.no_grad():
        pixels = tokenizer.decode(before).sample[0]
    whole = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().movedim(0, -1).numpy()
    assert end is finished and np.abs(np.asarray(frame).astype(int) - whole).max() <= 1


# Images


def test_generate(capfd):
    arguments = ["generate", PROMPT, "-o", "scene.png", "--seed", "7", "--steps", "4", "--device", "cpu"]
    assert cli.main(arguments) == cli.GOOD
    printed = capfd.readouterr()
    assert printed.out == "scene.png\n"
    assert printed.err == ""  # progress bars go to terminals only
    assert files() == ["scene.png"]
    size = trained_size()
    assert pixels("scene.png").shape == (size, size, 3)
    assert pixels("scene.png").std() > 10  # not a plain colour


def test_a_terminal_sees_progress_unless_quiet(monkeypatch, capfd):
    monkeypatch.setattr(model_loading, "on_terminal", lambda: True)
    arguments = ["generate", PROMPT, "-o", "scene.png", "--seed", "7", *FAST]
    assert cli.main(arguments) == cli.GOOD
    assert capfd.readouterr().err == ""
    assert cli.main([word for word in arguments if word != "--quiet"]) == cli.GOOD
    told = capfd.readouterr().err
    assert told.startswith("loading the embedded model ...\n") and "4/4" in told


@pytest.mark.slow
def test_a_seed_repeats_an_image_alone_and_in_a_batch(capfd):
    prompt = "anything"  # leaves open what is shown, so another seed gives another image
    for output, more in [
        ("one.png", ["--seed", "8"]),
        ("again.png", ["--seed", "8"]),
        ("many.png", ["--seed", "6", "--num", "9"]),  # more than one batch
    ]:
        assert cli.main(["generate", prompt, "-o", output, *more, *FAST]) == cli.GOOD
    names = ["one.png", "again.png", *(f"many-{index}.png" for index in range(9))]
    assert capfd.readouterr().out.splitlines() == names
    assert Path("one.png").read_bytes() == Path("again.png").read_bytes()
    assert np.abs(pixels("one.png") - pixels("many-2.png")).max() <= 1  # decoded in a batch, so rounding may differ
    assert np.abs(pixels("one.png") - pixels("many-8.png")).max() > 1


def test_names_that_are_no_text_do_not_stop_the_work(capfd):
    name = os.fsdecode(b"caf\xe9.png")
    assert cli.main(["generate", PROMPT, "-o", name, "--seed", "1", "--num", "2", *FAST]) == cli.GOOD
    assert capfd.readouterr().out.splitlines() == [f"caf\\udce9-{number}.png" for number in range(2)]
    assert len(list(Path().glob("caf*.png"))) == 2


def test_a_random_seed_is_printed(capfd):
    assert cli.main(["generate", PROMPT, "-o", "first.png", *FAST]) == cli.GOOD
    seed = re.search(r"^seed (\d+)$", capfd.readouterr().err, flags=re.MULTILINE)[1]
    assert cli.main(["generate", PROMPT, "-o", "second.png", "--seed", seed, *FAST]) == cli.GOOD
    assert Path("first.png").read_bytes() == Path("second.png").read_bytes()


def test_every_setting_reaches_the_pipeline():
    images = {}
    for name, more in {
        "plain": [],
        "guidance": ["--guidance", "1"],
        "temperature": ["--temperature", "1"],
        "negative": ["--negative-prompt", "a red apple"],
        "steps": ["--steps", "7"],
        "dtype": ["--dtype", "bfloat16"],
        "model": ["--model", "copy"],
    }.items():
        if name == "model":
            shutil.copytree(EMBEDDED_MODEL, "copy")
        # These words leave open what is shown, so each setting changes something.
        assert cli.main(["generate", "anything", "-o", "any.png", "--seed", "7", *FAST, *more]) == cli.GOOD
        images[name] = Path("any.png").read_bytes()
    assert images.pop("model") == images["plain"]
    assert len(set(images.values())) == len(images)


def test_size_and_suffix():
    size = trained_size()
    arguments = ["generate", PROMPT, "-o", "wide.JPG", "--size", f"{size}x{2 * size}", "--seed", "7", *FAST]
    assert cli.main(arguments) == cli.GOOD
    assert pixels("wide.JPG").shape == (size, 2 * size, 3)
    with Image.open("wide.JPG") as image:
        assert image.format == "JPEG"


def test_large_images_are_decoded_in_tiles(monkeypatch, processor):
    pipe = tiny.pipeline(processor)
    pipe.register_modules(image_decoder=tiny.image_decoder())
    pipe.save_pretrained("model")
    side = tiny.SIDE * tiny.FACTOR
    tiles, forward = {"tokenizer": set(), "decoder": set()}, ShowoDiffusionDecoder.forward

    def watched(decoder, sample, timestep, codes, image):
        tiles["decoder"].add(tuple(sample.shape[-2:]))
        return forward(decoder, sample, timestep, codes, image)

    def watched_codes(tokenizer, quantized):
        tiles["tokenizer"].add(tuple(tiny.FACTOR * one for one in quantized.shape[-2:]))
        return decode_quantized(tokenizer, quantized)

    decode_quantized = type(pipe.image_tokenizer).decode_quantized
    monkeypatch.setattr(ShowoDiffusionDecoder, "forward", watched)
    monkeypatch.setattr(type(pipe.image_tokenizer), "decode_quantized", watched_codes)
    for limit, whole in ((side * side, False), (2 * side * side, True)):
        monkeypatch.setattr(image_generation, "TILED_PIXELS", limit)
        arguments = ["generate", "an owl", "-o", "owl.png", "--model", "model", "--size", f"{side}x{2 * side}", *FAST]
        assert cli.main(arguments) == cli.GOOD
        assert pixels("owl.png").shape == (side, 2 * side, 3)
        assert all(found == {(side, 2 * side if whole else side)} for found in tiles.values())
        for found in tiles.values():
            found.clear()


def test_save_steps_ends_in_the_image(capfd):
    for steps in ("steps.png", "steps.gif"):
        arguments = ["generate", PROMPT, "-o", "scene.png", "--seed", "7", "--num", "2", "--save-steps", steps, *FAST]
        assert cli.main(arguments) == cli.GOOD
    stem = [f"scene-{i}.png" for i in range(2)]
    assert capfd.readouterr().out.splitlines() == [
        *stem, "steps-0.png", "steps-1.png", *stem, "steps-0.gif", "steps-1.gif",
    ]  # fmt: skip
    image, strip = pixels("scene-1.png"), pixels("steps-1.png")
    width = image.shape[1]
    assert (strip[:, -width:] == image).all()
    first = strip[:, :width]
    assert (first == 128).all(-1).mean() > 0.5  # after one step of four, most tokens are masked
    with Image.open("steps-1.gif") as film:
        assert film.n_frames == 1 + (strip.shape[1] - width) // (width + image_steps.STRIP_GAP)


@pytest.mark.parametrize("more", [["--size", "61x67"]])
def test_an_error_of_the_pipeline_is_a_usage_error(more, capfd):
    assert cli.main(["generate", PROMPT, "-o", "scene.png", "--seed", "7", *FAST, *more]) == cli.USAGE
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("showo-hf: error: ")
    assert "Traceback" not in printed.err
    assert files() == []


def test_a_model_that_cannot_be_loaded_is_a_failure(capfd):
    Path("model").mkdir()
    Path("model/model_index.json").write_text("{}", encoding="utf-8")
    assert cli.main(["generate", PROMPT, "-o", "scene.png", "--seed", "7", "--model", "model", *FAST]) == cli.FAILED
    printed = capfd.readouterr()
    assert printed.err.splitlines()[-1].startswith("showo-hf: error: cannot load the model 'model'")
    assert "Traceback" not in printed.err


@pytest.mark.slow
def test_an_interrupt_leaves_only_complete_images():
    arguments = ["generate", PROMPT, "-o", "scene.png", "--num", "10000", "--yes", "--seed", "0", *FAST]
    command = [sys.executable, "-m", "showo_hf.cli", *arguments]
    # Background jobs of a shell ignore the signal, and so do their children.
    reset = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=reset
    ) as process:
        try:
            written = [process.stdout.readline().strip()]
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # otherwise `with` waits until 10,000 images are made
    assert process.returncode == cli.INTERRUPTED
    assert err.splitlines()[-1] == "showo-hf: interrupted"
    written += out.splitlines()
    assert set(written) <= set(files())
    for name in files():
        pixels(name)  # Pillow raises if a file is truncated
