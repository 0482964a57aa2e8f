"""The command `showo-hf`, run for real: with the embedded model wherever a picture is made."""

import json
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from safetensors.torch import save_file

from showo_hf import cli
from showo_hf.configuration_showo_lfq import ShowoLFQTokenizerConfig
from showo_hf.modeling_showo_lfq import ShowoLFQTokenizer


PROMPT = "a red apple, flat style"
FAST = ("--steps", "4", "--device", "cpu", "--quiet")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> Path:
    """Each test runs in an empty folder of its own, as a user would."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def embedded_model() -> Path:
    from showo_hf import EMBEDDED_MODEL

    return Path(EMBEDDED_MODEL)


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


# Help and usage


def test_reading_the_command_line_needs_no_heavy_import():
    program = (
        f"import runpy, sys; runpy.run_path({cli.__file__!r})['build_parser']().format_help(); "
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["info", "--help"]])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 0
    assert "usage: showo-hf" in capsys.readouterr().out


def test_every_example_of_the_help_is_understood():
    parser = cli.build_parser()
    examples = re.findall(r"^ +showo-hf (.+)$", cli.EXAMPLES + cli.GENERATE_EXAMPLES, flags=re.MULTILINE)
    assert len(examples) >= 7
    for example in examples:
        words = re.findall(r'"([^"]*)"|(\S+)', example)
        parser.parse_args([quoted or plain for quoted, plain in words])


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"showo-hf {version('showo-hf')}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["paint"], "paint"),
        (["generate"], "prompt"),
        (["generate", PROMPT], "--output"),
        (["generate", PROMPT, "-o", "apple"], ".png"),
        (["generate", PROMPT, "-o", "apple.bmp"], "apple.bmp"),
        (["generate", PROMPT, "-o", "missing/apple.png"], "missing"),
        (["generate", PROMPT, "-o", "folder.png"], "folder"),
        (["generate", PROMPT, "-o", "a.png", "--save-steps", "a.jpg"], "--save-steps"),
        (["generate", PROMPT, "-o", "a.png", "--save-steps", "./a.png"], "--save-steps"),
        (["generate", PROMPT, "-o", "a.png", "--steps", "0"], "--steps"),
        (["generate", PROMPT, "-o", "a.png", "--steps", "two"], "--steps"),
        (["generate", PROMPT, "-o", "a.png", "--num", "-1"], "--num"),
        (["generate", PROMPT, "-o", "a.png", "--size", "0"], "--size"),
        (["generate", PROMPT, "-o", "a.png", "--size", "64x"], "--size"),
        (["generate", PROMPT, "-o", "a.png", "--guidance", "nan"], "--guidance"),
        (["generate", PROMPT, "-o", "a.png", "--temperature", "hot"], "--temperature"),
        (["generate", PROMPT, "-o", "a.png", "--seed", str(2**63)], "--seed"),
        (["generate", PROMPT, "-o", "a.png", "--dtype", "int8"], "--dtype"),
        (["generate", PROMPT, "-o", "a.png", "--device", "abacus"], "--device"),
        (["generate", PROMPT, "-o", "a.png", "--model", "folder.png"], "model_index.json"),
        (["generate", PROMPT, "-o", "a.png", "--model", "./missing"], "./missing"),
    ],
)
def test_a_wrong_command_line_is_told_in_words(arguments, named, capsys):
    Path("folder.png").mkdir()
    try:
        code = cli.main(arguments)
    except SystemExit as end:  # argparse's way
        code = end.code
    printed = capsys.readouterr()
    assert code == cli.USAGE
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert named in printed.err.splitlines()[-1]
    assert files() == ["folder.png"]


def test_debug_shows_the_trace_and_keeps_the_exit_code(capsys):
    assert cli.main(["generate", PROMPT, "-o", "apple.bmp", "--debug"]) == cli.USAGE
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("256", (256, 256)), ("256x384", (256, 384)), ("8x16", (8, 16))])
def test_picture_size(text, size):
    assert cli.picture_size(text) == size


# Files


def test_numbered():
    path = Path("some.where") / "apple.v2.png"
    assert cli.numbered(path, 1) == [path]
    assert cli.numbered(path, 2) == [path.with_name("apple.v2-0.png"), path.with_name("apple.v2-1.png")]


def test_a_failed_write_leaves_the_old_file_and_nothing_else():
    path = Path("apple.png")
    path.write_bytes(b"old")

    def write_half(temporary: Path) -> None:
        temporary.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(cli.CommandError, match="'apple.png': No space left on device"):
        cli.replace_file(path, write_half)
    assert files() == ["apple.png"]
    assert path.read_bytes() == b"old"


def test_a_written_file_has_the_usual_permissions():
    Path("plain.png").touch()
    cli.replace_file(Path("apple.png"), Image.new("RGB", (8, 8)).save)
    assert files() == ["apple.png", "plain.png"]
    assert Path("apple.png").stat().st_mode == Path("plain.png").stat().st_mode


def three_frames() -> list[Image.Image]:
    return [Image.new("RGB", (24, 16), colour) for colour in ("red", "lime", "blue")]


def test_a_film_stays_on_its_last_frame():
    cli.replace_file(Path("steps.gif"), partial(cli.save_steps, three_frames()))
    with Image.open("steps.gif") as film:
        frames = [
            (frame.convert("RGB").getpixel((0, 0)), frame.info["duration"]) for frame in ImageSequence.Iterator(film)
        ]
    usual, last = cli.FRAME_MILLISECONDS, cli.LAST_FRAME_MILLISECONDS
    assert frames == [((255, 0, 0), usual), ((0, 255, 0), usual), ((0, 0, 255), last)]


def test_a_strip_has_the_frames_side_by_side():
    cli.replace_file(Path("steps.png"), partial(cli.save_steps, three_frames()))
    strip = pixels("steps.png")
    assert strip.shape == (16, 3 * 24 + 2 * cli.STRIP_GAP, 3)
    assert [strip[0, column].tolist() for column in (0, 24, 26, 52)] == [
        [255, 0, 0], [255, 255, 255], [0, 255, 0], [0, 0, 255],
    ]  # fmt: skip


# Steps


def test_step_pictures_are_grey_where_nothing_is_known_and_final_where_all_is():
    config = ShowoLFQTokenizerConfig(
        codebook_bits=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        norm_num_groups=4,
    )
    torch.manual_seed(0)
    tokenizer = ShowoLFQTokenizer(config).eval()
    height, width, unknown = 3, 5, config.codebook_size
    last = torch.randint(0, config.codebook_size, (2, height, width))
    first, second = torch.full_like(last, unknown), last.clone()
    second[:, 1, 2] = unknown
    finished = [Image.new("RGB", (width * 4, height * 4), colour) for colour in ("red", "blue")]

    films = cli.step_pictures(tokenizer, [first, second, last], finished)

    assert [len(film) for film in films] == [3, 3]
    assert [film[-1] for film in films] == finished
    with torch.no_grad():
        decoded = tokenizer.decode(last).sample
    whole = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().movedim(1, -1).numpy()
    for film, picture in zip(films, whole, strict=True):
        assert (np.asarray(film[0]) == 128).all()
        shown = np.asarray(film[1]).astype(int)
        hidden = np.zeros((height * 4, width * 4), dtype=bool)
        hidden[4:8, 8:12] = True
        assert (shown[hidden] == 128).all()
        assert np.abs(shown - picture)[~hidden].max() <= 1


# Pictures


def test_generate(embedded_model, capfd):
    assert (
        cli.main(["generate", PROMPT, "-o", "apple.png", "--seed", "7", "--steps", "4", "--device", "cpu"]) == cli.GOOD
    )
    printed = capfd.readouterr()
    assert printed.out == "apple.png\n"
    assert "4/4" in printed.err
    assert files() == ["apple.png"]
    size = cli.model_facts(embedded_model)["picture_size"]
    assert pixels("apple.png").shape == (size, size, 3)
    assert pixels("apple.png").std() > 10  # not one plain colour


def test_quiet_leaves_stderr_empty(capfd):
    assert cli.main(["generate", PROMPT, "-o", "apple.png", "--seed", "7", *FAST]) == cli.GOOD
    assert "%|" not in capfd.readouterr().err


def test_a_seed_repeats_a_picture_alone_and_in_a_batch(capfd):
    for output, more in [
        ("one.png", ["--seed", "8"]),
        ("again.png", ["--seed", "8"]),
        ("many.png", ["--seed", "6", "--num", "9"]),  # more than go into one batch
    ]:
        assert cli.main(["generate", PROMPT, "-o", output, *more, *FAST]) == cli.GOOD
    names = ["one.png", "again.png", *(f"many-{index}.png" for index in range(9))]
    assert capfd.readouterr().out.splitlines() == names
    assert Path("one.png").read_bytes() == Path("again.png").read_bytes()
    assert np.abs(pixels("one.png") - pixels("many-2.png")).max() <= 1  # decoded in a batch, so rounding may differ
    assert np.abs(pixels("one.png") - pixels("many-8.png")).max() > 1


def test_a_seed_that_was_not_given_is_told(capfd):
    assert cli.main(["generate", PROMPT, "-o", "first.png", *FAST]) == cli.GOOD
    seed = re.search(r"^seed (\d+)$", capfd.readouterr().err, flags=re.MULTILINE)[1]
    assert cli.main(["generate", PROMPT, "-o", "second.png", "--seed", seed, *FAST]) == cli.GOOD
    assert Path("first.png").read_bytes() == Path("second.png").read_bytes()


def test_every_setting_reaches_the_pipeline():
    pictures = {}
    for name, more in {
        "plain": [],
        "guidance": ["--guidance", "1"],
        "temperature": ["--temperature", "4"],
        "negative": ["--negative-prompt", "a red apple"],
        "steps": ["--steps", "7"],
        "dtype": ["--dtype", "bfloat16"],
        "model": ["--model", "copy"],
    }.items():
        if name == "model":
            from showo_hf import EMBEDDED_MODEL

            shutil.copytree(EMBEDDED_MODEL, "copy")
        assert cli.main(["generate", PROMPT, "-o", "apple.png", "--seed", "7", *FAST, *more]) == cli.GOOD
        pictures[name] = Path("apple.png").read_bytes()
    assert pictures.pop("model") == pictures["plain"]
    assert len(set(pictures.values())) == len(pictures)


def test_size_and_suffix(embedded_model):
    size = cli.model_facts(embedded_model)["picture_size"]
    arguments = ["generate", PROMPT, "-o", "wide.JPG", "--size", f"{size}x{2 * size}", "--seed", "7", *FAST]
    assert cli.main(arguments) == cli.GOOD
    assert pixels("wide.JPG").shape == (size, 2 * size, 3)
    with Image.open("wide.JPG") as picture:
        assert picture.format == "JPEG"


def test_save_steps_ends_in_the_picture(capfd):
    for steps in ("steps.png", "steps.gif"):
        arguments = ["generate", PROMPT, "-o", "apple.png", "--seed", "7", "--num", "2", "--save-steps", steps, *FAST]
        assert cli.main(arguments) == cli.GOOD
    stem = [f"apple-{i}.png" for i in range(2)]
    assert capfd.readouterr().out.splitlines() == [
        *stem, "steps-0.png", "steps-1.png", *stem, "steps-0.gif", "steps-1.gif",
    ]  # fmt: skip
    picture, strip = pixels("apple-1.png"), pixels("steps-1.png")
    width = picture.shape[1]
    assert (strip[:, -width:] == picture).all()
    first = strip[:, :width]
    assert (first == 128).all(-1).mean() > 0.5  # after one step of four most is unknown
    with Image.open("steps-1.gif") as film:
        assert film.n_frames == 1 + (strip.shape[1] - width) // (width + cli.STRIP_GAP)


@pytest.mark.parametrize("more", [["--size", "61x67"]])
def test_what_the_pipeline_refuses_is_a_usage_error(more, capfd):
    assert cli.main(["generate", PROMPT, "-o", "apple.png", "--seed", "7", *FAST, *more]) == cli.USAGE
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("showo-hf: error: ")
    assert "Traceback" not in printed.err
    assert files() == []


def test_a_model_that_does_not_load_is_a_failure(capfd):
    Path("model").mkdir()
    Path("model/model_index.json").write_text("{}", encoding="utf-8")
    assert cli.main(["generate", PROMPT, "-o", "apple.png", "--seed", "7", "--model", "model", *FAST]) == cli.FAILED
    printed = capfd.readouterr()
    assert printed.err.splitlines()[-1].startswith("showo-hf: error: cannot load the model 'model'")
    assert "Traceback" not in printed.err


@pytest.mark.slow
def test_an_interrupt_leaves_whole_pictures_only():
    arguments = ["generate", PROMPT, "-o", "apple.png", "--num", "10000", "--seed", "0", *FAST]
    command = [sys.executable, "-m", "showo_hf.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        written = [process.stdout.readline().strip()]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert err.splitlines()[-1] == "showo-hf: interrupted"
    written += out.splitlines()
    assert set(written) <= set(files())
    for name in files():
        pixels(name)  # Pillow raises if it is cut off


# Info


def test_info_as_json_and_as_text(embedded_model, capsys):
    assert cli.main(["info", "--json"]) == cli.GOOD
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"] == version("torch")
    assert facts["versions"]["showo-hf"] == version("showo-hf")
    assert facts["devices"][0]["name"] == "cpu"
    assert "float32" in facts["devices"][0]["dtypes"]
    model = facts["embedded_model"]
    assert Path(model["folder"]) == embedded_model
    assert all(value is not None for value in model.values()), model
    assert model["megabytes"] < 45

    assert cli.main(["info"]) == cli.GOOD
    text = capsys.readouterr().out
    assert version("torch") in text
    assert f"{model['parameters']:,}" in text


def test_model_facts_of_an_empty_folder():
    assert cli.model_facts(Path()) is None


def test_count_parameters():
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7), "c": torch.tensor(1.0)}, "weights.safetensors")
    assert cli.count_parameters(Path("weights.safetensors")) == 23
