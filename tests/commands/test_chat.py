"""`showo-hf chat`, run with a small model whose answers are known."""

import argparse
import io
import json
import re
from pathlib import Path

import conversations
import numpy as np
import pytest
import torch
from chats import conversation, files, paint, pixels
from PIL import Image

from showo_hf import ShowoAnyToAnyPipeline, cli
from showo_hf.commands.chat import Chat, image_name, is_sensible
from showo_hf.commands.chat_screen import Screen
from showo_hf.commands.conversation_files import is_grid, open_conversation, read_conversation
from showo_hf.commands.saved_model import SavedModel
from showo_hf.utils.argument_types import MAX_PIXELS


@pytest.fixture
def chat(taught_folder, monkeypatch):
    """Run the command with lines on stdin, as from a file."""

    def run(*lines: str, options: tuple[str, ...] = ("--seed", "3", "--quiet")) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return cli.main(["chat", "--model", taught_folder, "--device", "cpu", *options])

    return run


@pytest.fixture(scope="session")
def pipe(taught_folder) -> ShowoAnyToAnyPipeline:
    pipe = ShowoAnyToAnyPipeline.from_pretrained(taught_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_json(name: str):
    return json.loads(Path(name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--output", "missing"], "'missing'"),
        (["--output", "file"], "'file'"),
        (["--steps", "0"], "--steps"),
        (["--guidance", "-1"], "--guidance"),
        (["--temperature", "-0.5"], "--temperature"),
        (["--temperature", "nan"], "--temperature"),
        (["--seed", "-1"], "--seed"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--max-images", "-1"], "--max-images"),
        (["--device", "abacus"], "--device"),
        (["--model", "./nowhere"], "./nowhere"),
        (["--load", "missing.json"], "'missing.json'"),
        (["--load", "file"], "'file' is not JSON"),
        (["--load", "text.json"], "'text.json' is not a list of messages"),
        (["--load", "ragged.json"], "message 2 of 'ragged.json': tokens must be rows of integers"),
        (["hello"], "hello"),
    ],
)
def test_invalid_arguments_are_refused(arguments, named, refused):
    Path("file").touch()
    Path("text.json").write_text('["what?"]', encoding="utf-8")
    ragged = {"role": "assistant", "content": [{"type": "image", "tokens": [[1, 2], [3]]}]}
    Path("ragged.json").write_text(json.dumps([{"role": "user", "content": "an owl"}, ragged]), encoding="utf-8")
    refused(["chat", *arguments], named)


# Lines on stdin


def test_answers_in_text_and_images(chat, pipe, capfd):
    assert chat("two hearts", "what?") == cli.GOOD
    printed = capfd.readouterr()
    assert printed.out == "a heart:\nimage-0.png\none more:\nimage-1.png\ntwo red hearts.\n"
    assert printed.err == ""
    assert files() == ["image-0.png", "image-1.png"]
    answer = pipe("two hearts", generator=torch.Generator().manual_seed(3))
    images = [part["image"] for part in answer.content if part["type"] == "image"]
    for index, image in enumerate(images):
        assert (pixels(f"image-{index}.png") == np.asarray(image)).all()


def test_the_steps_of_an_image_go_to_stderr_of_a_terminal(chat, monkeypatch, capfd):
    monkeypatch.setattr("showo_hf.commands.chat_screen.on_terminal", lambda: True)
    assert chat("two hearts", options=("--steps", "5")) == cli.GOOD
    printed = capfd.readouterr()
    assert printed.out.splitlines() == ["a heart:", "image-0.png", "one more:", "image-1.png"]
    assert "image 1" in printed.err and "image 2" in printed.err and "/5" in printed.err
    assert len(re.findall(r"^seed \d+$", printed.err, flags=re.MULTILINE)) == 1


def test_a_seed_repeats_a_conversation(chat, capfd):
    for folder, seed in [("one", "3"), ("again", "3"), ("other", "4")]:
        Path(folder).mkdir()
        options = ("--seed", seed, "--quiet", "--output", folder)
        assert chat("two hearts", "/new", "two hearts", options=options) == cli.GOOD
    one, again, other = (
        [(Path(folder) / f"image-{index}.png").read_bytes() for index in range(4)]
        for folder in ("one", "again", "other")
    )
    assert one == again
    assert len({*one, *other}) == 8
    assert "other/image-3.png" in capfd.readouterr().out.splitlines()


def test_no_file_is_overwritten(chat, capfd):
    Path("image-0.png").write_bytes(b"mine")
    assert chat("two hearts") == cli.GOOD
    assert chat("two hearts") == cli.GOOD
    assert Path("image-0.png").read_bytes() == b"mine"
    assert files() == [f"image-{index}.png" for index in range(5)]
    assert capfd.readouterr().out.split().count("image-1.png") == 1


def test_every_setting_reaches_the_pipeline(chat, capfd):
    images = set()
    for more in [(), ("--steps", "2"), ("--guidance", "1"), ("--temperature", "5"), ("--dtype", "bfloat16")]:
        assert chat("two hearts", options=("--seed", "3", "--quiet", *more)) == cli.GOOD
        images.add(Path(capfd.readouterr().out.splitlines()[1]).read_bytes())
    assert len(images) == 5
    assert chat("two hearts", options=("--quiet", "--max-images", "1", "--seed", "3")) == cli.GOOD
    assert len([line for line in capfd.readouterr().out.splitlines() if line.endswith(".png")]) == 1
    assert chat("two hearts", options=("--quiet", "--max-images", "0", "--seed", "3")) == cli.GOOD
    assert ".png" not in capfd.readouterr().out
    assert chat("what?", options=("--quiet", "--max-new-tokens", "1", "--seed", "3")) == cli.GOOD
    printed = capfd.readouterr()
    assert "--max-new-tokens" in printed.err
    assert len(printed.out) < len("an owl.\n")


def test_attached_images_are_sent_with_the_next_message(chat, pipe, capfd):
    paint("an apple.png")
    names = ["an apple.png", '"an apple.png"', "an\\ apple.png", "./an apple.png"]
    for name in names:
        assert chat(f"/image {name}", "", "what?") == cli.GOOD
        printed = capfd.readouterr()
        assert printed.out == "an owl.\n"
        assert "(an apple.png, 20x16, is sent with your next message)" in printed.err
    two = pipe([{"role": "user", "content": [
        {"type": "image", "path": "an apple.png"}, {"type": "image", "path": "an apple.png"},
        {"type": "text", "text": "what?"},
    ]}]).content  # fmt: skip
    assert chat("/image an apple.png", "/image an apple.png", "what?", "/new", "two hearts") == cli.GOOD
    assert capfd.readouterr().out.startswith("".join(part.get("text", "") for part in two))


def test_the_pipeline_accepts_a_saved_conversation(chat, pipe, capfd):
    paint("apple.png")
    lines = ["/image apple.png", "what?", "two hearts", "/save said.json", "/new", "what?", "/save later.json"]
    assert chat(*lines) == cli.GOOD
    messages = read_json("said.json")
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    pixel_values = pipe.processor(images=Image.open("apple.png"))["pixel_values"]
    tokens = pipe.image_tokenizer.encode(pixel_values).image_tokens[0].tolist()
    apple = {"type": "image", "path": "apple.png", "tokens": tokens}
    assert messages[:2] == [
        {"role": "user", "content": [apple, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "an owl."}]},
    ]
    shown = [part["path"] for part in messages[3]["content"] if part["type"] == "image"]
    assert shown == [line for line in capfd.readouterr().out.splitlines() if line.endswith(".png")]
    assert pipe(messages[:1]).content == messages[1]["content"]
    assert len(read_json("later.json")) == 2


def test_a_loaded_conversation_continues_exactly(chat, capfd):
    paint("apple.png")
    quiet = ("--quiet", "--seed", "3")
    before = ["/image apple.png", "two hearts", "/save said.json"]
    assert chat(*before, "/image apple.png", "what?", "/save whole.json", options=quiet) == cli.GOOD
    whole = capfd.readouterr().out
    for name in ("image-0.png", "image-1.png"):
        Path(name).unlink()  # their tokens are in said.json
    after = ["/save same.json", "/image apple.png", "what?", "/save again.json"]
    assert chat(*after, "/new", "/save new.json", options=(*quiet, "--load", "said.json")) == cli.GOOD
    printed = capfd.readouterr()
    assert printed.err.splitlines()[0] == "(2 messages from said.json)"
    assert whole.endswith(printed.out) and printed.out == "two red hearts.\n"  # as after two hearts alone
    assert Path("same.json").read_bytes() == Path("said.json").read_bytes()
    assert Path("again.json").read_bytes() == Path("whole.json").read_bytes()
    shown = [part for message in read_json("again.json") for part in message["content"] if part["type"] == "image"]
    assert [part["path"] for part in shown] == ["apple.png", "image-0.png", "image-1.png", "apple.png"]
    assert all(part["tokens"] for part in shown)
    assert read_json("new.json") == []


def test_loaded_images_are_their_saved_tokens(pipe):
    """Encoding the saved file of a generated image would give other tokens."""
    chat = conversation(pipe)
    assert chat.run_line("two hearts") and chat.run_line("/save said.json")
    drawn = [part["image"] for part in chat.session.messages[1]["content"] if part["type"] == "image"]
    pixel_values = pipe.processor(images=[Image.open(f"image-{index}.png") for index in range(2)])["pixel_values"]
    assert not torch.equal(pipe.image_tokenizer.encode(pixel_values).image_tokens, torch.stack(drawn))
    loaded = conversation(pipe, load=Path("said.json"))
    saved = read_conversation("--load", Path("said.json"))
    loaded.resume(*open_conversation("--load", Path("said.json"), saved, None, MAX_PIXELS))
    for one, other in zip(loaded.session.messages, chat.session.messages, strict=True):
        assert one["role"] == other["role"] and conversations.same_parts(one["content"], other["content"])


def test_a_conversation_without_tokens_is_loaded_from_its_image_files(chat, pipe, capfd):
    content = [{"type": "image", "path": paint("apple.png")}, {"type": "text", "text": "what?"}]
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": "an owl."}]
    Path("said.json").write_text(json.dumps(said), encoding="utf-8")
    assert chat("/save same.json", "what?", "/save more.json", options=("--quiet", "--load", "said.json")) == cli.GOOD
    expected = pipe([*said, {"role": "user", "content": "what?"}]).content
    assert capfd.readouterr().out.strip() == "".join(part["text"] for part in expected).strip()
    assert read_json("same.json") == said
    first = read_json("more.json")[0]["content"][0]
    assert first["path"] == "apple.png" and len(first["tokens"]) == 4


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([{"type": "image", "tokens": [[1, 64]]}], "from 0 to 63"),
        ([{"type": "image", "path": "gone.png"}], "'gone.png'"),
        ([{"type": "sound"}], "sound"),
        (None, "content"),
    ],
)
def test_a_conversation_that_is_not_valid_is_refused(content, named, chat, monkeypatch, capfd):
    Path("said.json").write_text(json.dumps([{"role": "assistant", "content": content}]), encoding="utf-8")
    monkeypatch.setattr("showo_hf.commands.chat.load_pipeline", None)  # no model is loaded
    assert chat("what?", options=("--quiet", "--load", "said.json")) == cli.USAGE
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("showo-hf: error: `--load` cannot continue 'said.json': ") and named in line


def test_tokens_of_a_model_whose_files_do_not_tell_are_refused_without_a_seed(chat, monkeypatch, capfd):
    """The files of a model on the Hub are not known before it is loaded."""
    monkeypatch.setattr("showo_hf.commands.chat.read_saved_model", lambda model: SavedModel())
    content = [{"type": "image", "tokens": [[1, 64]]}]
    Path("said.json").write_text(json.dumps([{"role": "assistant", "content": content}]), encoding="utf-8")
    assert chat("what?", options=("--quiet", "--load", "said.json")) == cli.USAGE
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("showo-hf: error: `--load` cannot continue 'said.json': ") and "from 0 to 63" in line


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        ([[1, 2], [3, 4]], True),
        ([[0]], True),
        ([[1, 2], [3]], False),
        ([[1, True]], False),
        ([[1.0]], False),
        ([["1"]], False),
        ([[2**40]], False),
        ([[]], False),
        ([], False),
        ([1, 2], False),
        ("12", False),
        (None, False),
    ],
)
def test_rows_of_tokens(rows, right):
    assert is_grid(rows) is right


def test_max_pixels_reads_larger_images(chat, capfd):
    Image.new("RGB", (50, 40), "red").save("photo.png")
    small = ("--quiet", "--seed", "3", "--max-pixels", "1999")
    assert chat("/image photo.png", options=small) == cli.FAILED
    assert "its 50x40 pixels are more than the 1,999 that are read; `--max-pixels`" in capfd.readouterr().err
    content = [{"type": "image", "path": "photo.png"}, {"type": "text", "text": "what?"}]
    Path("said.json").write_text(json.dumps([{"role": "user", "content": content}]), encoding="utf-8")
    assert chat(options=(*small, "--load", "said.json")) == cli.USAGE
    assert "1,999 that are read); `--max-pixels` raises the limit" in capfd.readouterr().err
    assert chat("/image photo.png", options=("--quiet", "--max-pixels", "2000", "--load", "said.json")) == cli.GOOD


def test_a_failed_line_does_not_stop_the_others(chat, capfd):
    paint("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:60])
    Path("text.png").write_text("an owl", encoding="utf-8")
    lines = [
        "/paint",
        "/image",
        "/image nowhere.png",
        "/image cut.png",
        "/image text.png",
        "/save",
        "/save a.txt",
    ]
    assert chat(*lines, "what? " * 300, "two hearts", "/quit", "what?") == cli.FAILED
    printed = capfd.readouterr()
    told = printed.err.splitlines()
    assert len(told) == len(lines) + 1
    named = ["/paint", "path", "'nowhere.png'", "'cut.png'", "'text.png'", "/save", "a.txt", "positions"]
    for line, name in zip(told, named, strict=True):
        assert line.startswith("showo-hf: error: ") and name in line
    assert printed.out.splitlines()[::2] == ["a heart:", "one more:"]  # and nothing after /quit


def test_help_and_a_message_that_starts_with_a_slash(chat, capfd):
    assert chat("/help", " /quit", "") == cli.GOOD
    printed = capfd.readouterr()
    assert "/image PATH" in printed.err
    assert printed.out != ""  # sent to the model


def test_empty_input(chat, capfd):
    assert chat() == cli.GOOD
    assert capfd.readouterr() == ("", "")


def test_a_turn_is_discarded_if_an_image_cannot_be_saved(taught_folder, pipe, monkeypatch, capfd):
    Path("out").mkdir()
    chat = conversation(pipe, output="out")
    Path("out").rmdir()
    assert chat.run_line("two hearts")
    assert "cannot write 'out/image-0.png'" in capfd.readouterr().err
    assert chat.failed and chat.sources == chat.session.messages == []
    Path("out").mkdir()
    assert chat.run_line("two hearts")
    assert capfd.readouterr().out.splitlines()[1] == "out/image-0.png"


def test_image_name():
    paint("a b.png")
    assert image_name("a b.png") == image_name("'a b.png'") == image_name("a\\ b.png") == "a b.png"
    assert image_name("it's.png") == "it's.png"  # does not exist, which is reported later
    assert image_name("~/x.png") == str(Path.home() / "x.png")
    assert image_name("https://example.org/a b.png") == "https://example.org/a b.png"


def test_the_screen_starts_image_names_on_a_new_line(capsys):
    screen = Screen(quiet=True)
    for piece in (" one", " two\n", "  three"):
        screen.text(piece)
    screen.image(Path("a.png"), Image.new("RGB", (1, 1)))
    screen.text(" ")
    screen.image(Path("b.png"), Image.new("RGB", (1, 1)))
    screen.text(" four\n\n")
    screen.close()
    screen.close()
    assert capsys.readouterr().out == "one two\nthree\na.png\nb.png\nfour\n\n"


# Help for a conversation that is lost, and images in the terminal


@pytest.mark.parametrize(
    ("text", "sensible"),
    [
        ("an owl.", True),
        ("", False),
        (" ... !", False),
        ("no no no no", False),
        ("no, no, no.", True),
        ("7", True),
        ("一只猫头鹰", True),
    ],
)
def test_answers_that_make_sense(text, sensible):
    assert is_sensible(text) is sensible


def text(words: str) -> list[dict]:
    return [{"type": "text", "text": words}]


@pytest.mark.parametrize(
    ("turns", "offers"),
    [
        ([("hi", text("an owl.")), ("what?", text(".")), ("and?", [])], [3]),
        ([("hi", []), ("what?", text("an owl.")), ("and?", [])], []),
        ([("hi", []), ("what?", []), ("and?", []), ("so?", [])], [2, 4]),
        ([("hi", text("it is a red apple.")), ("what?", text("it is a red apple.")), ("and?", text("."))], [3]),
        ([("hi", text("it is a red apple.")), ("hi", text("it is a red apple.")), ("and?", text("."))], []),
        ([("is it food?", text("yes.")), ("is it red?", text("yes.")), ("is it big?", text("yes."))], []),
        ([("hi", []), ("draw", [{"type": "image", "image": None}]), ("and?", [])], []),
    ],
)
def test_new_is_offered_after_two_answers_without_sense(turns, offers, pipe, capfd):
    options = argparse.Namespace(output=Path(), quiet=True)
    chat = Chat(pipe, options, seed=3, interactive=False)
    found = []
    for number, (asked, content) in enumerate(turns, start=1):
        chat.offer_new(asked, content)
        if "/new starts a new conversation" in capfd.readouterr().err:
            found.append(number)
    assert found == offers
    chat.begin()
    chat.offer_new("what?", [])
    chat.begin()
    chat.offer_new("what?", [])
    assert capfd.readouterr().err == ""  # a new conversation counts from the beginning


def test_a_conversation_offers_new(chat, monkeypatch, capfd):
    monkeypatch.setattr("showo_hf.commands.chat.is_sensible", lambda text: False)
    assert chat("what?", "what?", "/new", "what?") == cli.GOOD
    printed = capfd.readouterr()
    assert printed.err.count("/new starts a new conversation") == 1


def test_an_image_is_shown_above_its_path(capfd):
    image = Image.new("RGB", (8, 8))
    for protocol, shown in [(None, "image-0.png\n"), (lambda image: f"<{image.size}>", "<(8, 8)>\nimage-0.png\n")]:
        screen = Screen(quiet=True, protocol=protocol)
        screen.image(Path("image-0.png"), image)
        assert capfd.readouterr().out == shown


@pytest.mark.parametrize("line", [b"caf\xe9", b"an \x00 owl", b"\xed\xa0\x80"])
def test_a_line_that_is_no_text_is_one_error_and_the_next_is_answered(line, taught_folder, monkeypatch, capfd):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line + b"\nwhat?\n"), encoding="utf-8"))
    options = ["--model", taught_folder, "--device", "cpu", "--seed", "3", "--quiet"]
    assert cli.main(["chat", *options]) == cli.FAILED
    printed = capfd.readouterr()
    assert len(printed.out.splitlines()) == 1
    (error,) = [line for line in printed.err.splitlines() if "error" in line]
    assert error.startswith("showo-hf: error: `message` must be text")
