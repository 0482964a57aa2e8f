"""`showo-hf caption`, run with a small model with known answers."""

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from showo_hf import ShowoMMUPipeline, cli
from showo_hf.commands import image_questions
from showo_hf.commands.caption import DEFAULT_PROMPT
from showo_hf.processing.images import load_image


COLOURS = ("red", "lime", "blue", "white", "black")


@pytest.fixture
def caption(taught_folder):
    """Run the command with the small model."""

    def run(*arguments: str) -> int:
        return cli.main(
            ["caption", *arguments, "--model", taught_folder, "--device", "cpu", "--quiet", "--max-new-tokens", "6"]
        )

    return run


@pytest.fixture(scope="session")
def said(taught_folder):
    """The answers of the pipeline itself, one image at a time."""
    pipe = ShowoMMUPipeline.from_pretrained(taught_folder)

    def say(*names: str, prompt: str = DEFAULT_PROMPT) -> list[str]:
        return [pipe(load_image(name), prompt, max_new_tokens=6).texts[0] for name in names]

    return say


def paint(*names: str) -> list[str]:
    """Write a different image to each file."""
    for index, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.radial_gradient("L").resize((20 + index, 16 + 2 * index)).convert("RGB")
        image.paste(COLOURS[index % len(COLOURS)], (index, 0, index + 9, 8))
        image.save(name)
    return list(names)


def truncate(name: str) -> None:
    """Cut an image file in half."""
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: len(whole) // 2])


def json_records(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# Usage


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "IMAGE"),
        (["missing.png"], "missing.png"),
        (["missing.png", "gone.png"], "'missing.png' does not exist, nor do the 1 others"),
        (["long " * 2000], "... "),
        (["a\0b"], "does not exist"),
        (["here.png", "--prompt", "caf\udce9"], "`--prompt` must be text in UTF-8"),
        (["here.png", "--batch-size", "99999"], "from 1 to 4096"),
        (["here.png", "--dtype", "float16", "--device", "cpu"], "--dtype float16"),
        (["here.png", "--model", "here.png"], "'here.png' is a file"),
        ([""], "''"),
        (["empty"], "'empty' contains no images"),
        (["nested"], "--recursive"),
        (["here.png", "--prompt", " "], "--prompt"),
        (["here.png", "--batch-size", "0"], "--batch-size"),
        (["here.png", "--max-new-tokens", "few"], "--max-new-tokens"),
        (["here.png", "-o", "out.json"], ".jsonl"),
        (["here.png", "-o", "missing/out.jsonl"], "missing"),
        (["here.png", "-o", "folder.jsonl"], "folder.jsonl"),
        (["here.png", "-o", "notes.jsonl"], "line 1 of 'notes.jsonl' is not a JSON object"),
        (["here.png", "-o", "others.jsonl"], "line 1 of 'others.jsonl' has no image"),
        (["here.png", "--device", "abacus"], "--device"),
        (["here.png", "--model", "empty"], "model_index.json"),
    ],
)
def test_invalid_arguments_are_refused(arguments, named, refused):
    paint("here.png", "nested/inner/there.png")
    Path("empty").mkdir()
    Path("folder.jsonl").mkdir()
    Path("notes.jsonl").write_text("milk\neggs\n", encoding="utf-8")
    Path("others.jsonl").write_text('{"name": "milk"}\n', encoding="utf-8")
    refused(["caption", *arguments], named)
    assert Path("notes.jsonl").read_text(encoding="utf-8") == "milk\neggs\n"


def test_an_error_of_the_pipeline_is_a_usage_error(caption, capsys):
    paint("a.png")
    assert caption("a.png", "--prompt", "very long " * 200) == cli.USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "--max-new-tokens" in printed.err.splitlines()[-1]


# What is printed


def test_one_image_prints_only_its_caption(caption, said, capsys):
    paint("a.png")
    assert caption("a.png") == cli.GOOD
    assert capsys.readouterr().out == f"{said('a.png')[0]}\n"
    assert caption("a.png", "--prompt", "what?") == cli.GOOD
    assert capsys.readouterr().out == "an owl.\n"


def test_several_images_print_one_line_each(caption, said, capsys):
    names = paint("b.png", "images/z.png", "images/A.JPG", "images/k.webp", "images/.hidden.png", "x/y/c.bmp")
    Path("images/notes.txt").write_text("not an image", encoding="utf-8")
    assert caption("x", "--recursive", "images", "./b.png", "images/z.png", "--batch-size", "3") == cli.GOOD
    order = ["x/y/c.bmp", "images/A.JPG", "images/k.webp", "images/z.png", "b.png"]
    assert set(order) | {"images/.hidden.png"} == set(names)
    expected = [f"{name}: {' '.join(text.split())}" for name, text in zip(order, said(*order), strict=True)]
    assert capsys.readouterr().out.splitlines() == expected


def test_a_folder_with_one_image_prints_the_image_name(caption, capsys):
    paint("images/a.png")
    assert caption("images", "--prompt", "what?") == cli.GOOD
    assert capsys.readouterr().out == "images/a.png: an owl.\n"


def test_json(caption, said, capsys):
    names = paint("a.png", "ö b.png")
    assert caption(*names, "--json") == cli.GOOD
    texts = said(*names)
    assert json_records(capsys.readouterr().out) == [
        {"image": name, "prompt": DEFAULT_PROMPT, "text": text} for name, text in zip(names, texts, strict=True)
    ]
    assert caption("a.png", "--json", "--prompt", "what?") == cli.GOOD
    assert json_records(capsys.readouterr().out) == [{"image": "a.png", "prompt": "what?", "text": "an owl."}]


def test_a_missing_image_does_not_stop_the_others(caption, said, capsys):
    paint("a.png", "b.png")
    assert caption("a.png", "nope.png", "b.png") == cli.FAILED
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{name}: {' '.join(text.split())}"
        for name, text in zip(["a.png", "b.png"], said("a.png", "b.png"), strict=True)
    ]
    assert printed.err == "showo-hf: error: 'nope.png' cannot be read: no such file\n"


def test_several_images_show_a_progress_bar_on_a_terminal_unless_quiet(taught_folder, monkeypatch, capfd):
    paint("a.png", "b.png", "c.png")
    options = ["--model", taught_folder, "--device", "cpu", "--max-new-tokens", "2"]
    assert cli.main(["caption", "a.png", "b.png", *options]) == cli.GOOD
    assert "reading" not in capfd.readouterr().err
    monkeypatch.setattr(image_questions, "on_terminal", lambda: True)
    assert cli.main(["caption", "a.png", "b.png", "c.png", *options]) == cli.GOOD
    printed = capfd.readouterr()
    assert "reading: 100%" in printed.err and "3/3" in printed.err
    assert len(printed.out.splitlines()) == 3
    assert cli.main(["caption", "a.png", *options]) == cli.GOOD
    assert "reading" not in capfd.readouterr().err
    assert cli.main(["caption", "a.png", "b.png", *options, "--quiet"]) == cli.GOOD
    assert "reading" not in capfd.readouterr().err


def test_a_file_name_that_is_not_valid_text_is_printed(caption, capfd):
    name = os.fsdecode(b"caf\xe9.png")
    paint("plain.png")
    try:
        os.rename("plain.png", name)
    except OSError:
        pytest.skip("the file system does not support such names")
    paint("a.png")
    assert caption(".", "--prompt", "what?") == cli.GOOD
    assert capfd.readouterr().out.splitlines() == ["a.png: an owl.", "caf\\udce9.png: an owl."]
    assert caption(".", "--prompt", "what?", "-o", "out.jsonl") == cli.GOOD
    assert json_records(Path("out.jsonl").read_text(encoding="ascii"))[1]["image"] == name


def test_a_closed_stdout_ends_the_command(caption, monkeypatch, capfd):
    paint("a.png", "b.png")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert caption("a.png", "b.png", "--batch-size", "1") == cli.FAILED
    assert "error" not in capfd.readouterr().err


# Unusual images


def test_unusual_images_are_read(caption, said, capsys):
    paint("plain.png")
    plain = Image.open("plain.png").convert("RGB")
    Image.new("RGB", (1, 1), "red").save("dot.png")
    Image.new("RGB", (20_000, 4), "red").save("line.png")
    transparent = plain.copy()
    transparent.putalpha(100)
    transparent.save("alpha.png")
    plain.convert("CMYK").save("cmyk.jpg")
    plain.convert("P").save("palette.gif")
    plain.convert("1").save("bits.tif")
    Image.new("I;16", (16, 16), 40_000).save("deep.png")
    plain.save("film.gif", save_all=True, append_images=[Image.new("RGB", plain.size, "blue")])
    Image.open("plain.png").save(
        "other.data", format="PNG"
    )  # named on the command line, so the suffix does not matter
    names = sorted(path.name for path in Path().iterdir())
    assert caption(*names, "--json") == cli.GOOD
    assert json_records(capsys.readouterr().out) == [
        {"image": name, "prompt": DEFAULT_PROMPT, "text": text} for name, text in zip(names, said(*names), strict=True)
    ]


def test_unreadable_images_do_not_stop_the_run(caption, said, capsys):
    paint("bad/a.png", "bad/b.png", "bad/c.png", "bad/d.jpg", "bad/e.png")
    truncate("bad/b.png")
    truncate("bad/d.jpg")
    Path("bad/c.png").write_text("an image of an owl", encoding="utf-8")
    Path("bad/f.png").touch()
    Path("bad/folder.png").mkdir()
    assert caption("bad", "--batch-size", "2") == cli.FAILED
    printed = capsys.readouterr()
    good, bad = ["bad/a.png", "bad/e.png"], ["bad/b.png", "bad/c.png", "bad/d.jpg", "bad/f.png"]
    expected = [f"{name}: {' '.join(text.split())}" for name, text in zip(good, said(*good), strict=True)]
    assert printed.out.splitlines() == expected
    told = [line for line in printed.err.splitlines() if line.startswith("showo-hf: error: ")]
    assert len(told) == len(bad)
    for name, line in zip(bad, told, strict=True):
        assert line.startswith(f"showo-hf: error: '{name}' cannot be read: ")
        assert len(line.split(": ", 3)[3]) > 5
        assert "0x" not in line and os.getcwd() not in line
    assert "Traceback" not in printed.err

    assert caption("bad", "--json") == cli.FAILED
    records = json_records(capsys.readouterr().out)
    assert [record["image"] for record in records] == sorted(good + bad)
    assert [record["image"] for record in records if set(record) == {"image", "error"}] == bad


def broken_model() -> str:
    """A folder that passes the check of `--model`, but cannot be loaded."""
    Path("broken").mkdir(exist_ok=True)
    Path("broken/model_index.json").write_text("{}", encoding="utf-8")
    return "broken"


def test_no_model_is_loaded_if_no_image_can_be_read(capsys):
    paint("a.png")
    truncate("a.png")
    assert cli.main(["caption", "a.png", "--model", broken_model()]) == cli.FAILED
    assert capsys.readouterr().err.splitlines()[-1].startswith("showo-hf: error: 'a.png' cannot be read: ")


# Result files


def results(name: str = "out.jsonl") -> list[dict]:
    return json_records(Path(name).read_text(encoding="utf-8"))


def test_a_second_run_only_appends_new_images(caption, said, taught_folder, capsys):
    paint("p/a.png", "p/c.png")
    assert caption("p", "-o", "out.jsonl") == cli.GOOD
    printed = capsys.readouterr()
    assert printed.out == "out.jsonl\n"
    first = Path("out.jsonl").read_bytes()
    assert results() == [
        {"image": name, "prompt": DEFAULT_PROMPT, "text": text}
        for name, text in zip(["p/a.png", "p/c.png"], said("p/a.png", "p/c.png"), strict=True)
    ]
    paint("p/b.png")
    assert caption("p", "-o", "out.jsonl") == cli.GOOD
    assert Path("out.jsonl").read_bytes().startswith(first)
    assert [record["image"] for record in results()] == ["p/a.png", "p/c.png", "p/b.png"]
    settings = json.loads(Path("out.settings.json").read_text(encoding="utf-8"))
    assert settings == {
        "model": taught_folder, "dtype": "float32", "max_new_tokens": 6, "device": "cpu", "showo_hf": version("showo-hf")
    }  # fmt: skip
    # If every question is answered, no model is loaded.
    complete = Path("out.jsonl").read_bytes()
    Path("out.settings.json").unlink()
    assert cli.main(["caption", "p", "-o", "out.jsonl", "--model", broken_model()]) == cli.GOOD
    assert "3 skipped, 0 done, 0 failed" in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == complete
    # Other settings need another file.
    assert caption("p", "-o", "out.jsonl") == cli.USAGE
    assert f"holds answers with model 'broken', and {taught_folder!r}"[:50] in capsys.readouterr().err
    Path("out.settings.json").unlink()
    # So does another kind of device.
    Path("out.settings.json").write_text(json.dumps(settings | {"device": "cuda"}), encoding="utf-8")
    assert caption("p", "-o", "out.jsonl") == cli.USAGE
    assert "holds answers with device 'cuda', and 'cpu' is asked for now" in capsys.readouterr().err
    Path("out.settings.json").unlink()
    # Another prompt is another question.
    assert caption("p", "-o", "out.jsonl", "--prompt", "what?") == cli.GOOD
    assert len(results()) == 6
    assert all(record["text"] == "an owl." for record in results()[3:])


def test_records_of_an_earlier_version_were_asked_the_default_prompt(caption, capsys):
    paint("p/a.png", "p/b.png")
    Path("out.jsonl").write_text('{"image": "p/a.png", "text": "an apple."}\n', encoding="utf-8")
    assert caption("p", "-o", "out.jsonl") == cli.GOOD
    assert [(record["image"], record.get("prompt")) for record in results()] == [
        ("p/a.png", None), ("p/b.png", DEFAULT_PROMPT)
    ]  # fmt: skip
    assert caption("p", "-o", "out.jsonl", "--prompt", "what?") == cli.GOOD
    assert [record.get("prompt") for record in results()] == [None, DEFAULT_PROMPT, "what?", "what?"]


def test_max_pixels_reads_larger_images(caption, capsys):
    paint("a.png")  # 20x16
    assert caption("a.png", "--prompt", "what?", "--max-pixels", "319") == cli.FAILED
    line = (
        "'a.png' cannot be read: its 20x16 pixels are more than the 319 that are read; `--max-pixels` raises the limit"
    )
    assert capsys.readouterr().err == f"showo-hf: error: {line}\n"
    assert caption("a.png", "--prompt", "what?", "--max-pixels", "320") == cli.GOOD
    assert capsys.readouterr().out == "an owl.\n"


def test_errors_are_tried_again_and_replaced(caption):
    paint("p/a.png", "p/b.png")
    whole = Path("p/a.png").read_bytes()
    truncate("p/a.png")
    assert caption("p", "-o", "out.jsonl") == cli.FAILED
    assert caption("p", "-o", "out.jsonl") == cli.FAILED
    assert [(record["image"], "error" in record) for record in results()] == [("p/b.png", False), ("p/a.png", True)]
    Path("p/a.png").write_bytes(whole)
    assert caption("p/b.png", "-o", "out.jsonl") == cli.GOOD  # the error of an image that is not named stays
    assert "error" in results()[1]
    assert caption("p", "-o", "out.jsonl") == cli.GOOD
    assert [(record["image"], "error" in record) for record in results()] == [("p/b.png", False), ("p/a.png", False)]


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_an_incomplete_last_line_is_asked_again(caption, cut):
    names = paint("a.png", "b.png", "c.png")
    assert caption(*names, "-o", "out.jsonl") == cli.GOOD
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole[:-cut])
    assert caption(*names, "-o", "out.jsonl") == cli.GOOD
    assert Path("out.jsonl").read_bytes() == whole


def test_a_result_file_that_is_a_link_stays_a_link(caption):
    paint("a.png", "b.png")
    Path("real").mkdir()
    os.symlink("real/out.jsonl", "out.jsonl")
    truncate("a.png")
    assert caption("a.png", "-o", "out.jsonl") == cli.FAILED
    paint("a.png")
    assert caption("a.png", "-o", "out.jsonl") == cli.GOOD
    assert Path("out.jsonl").is_symlink()
    assert len(results("real/out.jsonl")) == 1


def test_an_interrupted_run_resumes(caption, interrupt_when, capsys):
    paint("p/0.png", "p/1.png", "p/2.png")
    for index in range(3, 120):
        shutil.copy(f"p/{index % 3}.png", f"p/{index}.png")
    output = Path("out.jsonl")
    with interrupt_when(lambda: output.exists() and output.stat().st_size > 300):
        assert caption("p", "-o", "out.jsonl", "--batch-size", "1") == cli.INTERRUPTED
    assert capsys.readouterr().err.splitlines()[-1] == "showo-hf: interrupted"
    done = len(output.read_bytes().splitlines())
    assert 3 < done < 120
    assert caption("p", "-o", "out.jsonl", "--batch-size", "32") == cli.GOOD
    assert [record["image"] for record in results()] == sorted(f"p/{index}.png" for index in range(120))
    texts = {record["image"]: record["text"] for record in results()}
    assert all(texts[f"p/{index}.png"] == texts[f"p/{index % 3}.png"] for index in range(120))
