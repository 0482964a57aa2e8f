"""What `showo-hf caption` and `showo-hf ask` share: image files, jobs and batches."""

import argparse
import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import conversations
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from showo_hf import ShowoMMUPipeline
from showo_hf.commands.errors import UsageError
from showo_hf.commands.image_files import find_images, is_single_image, load
from showo_hf.commands.image_questions import (
    Job,
    ask_each,
    batches,
    generate_answers,
    loaded_batches,
    open_jobs,
)


ASKED = tuple({"question": name} for name in "abc")
JOBS = st.lists(st.builds(Job, st.uuids().map(str), st.sampled_from([ASKED[:1], ASKED[1:], ASKED])), max_size=30)


def paint(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(name)


@pytest.fixture
def address() -> Iterator[str]:
    """The URL of a web server for the working directory."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=".")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# Image files


def test_images_of_folders_are_sorted_by_name():
    paint("p/b.png", "p/a.JPG", "p/in/c.png", "p/.d.png", "p/in/.e.png", "p/.in/g.png", "f.png")
    paint(".h/i.png")
    Path("p/notes.txt").touch()
    assert find_images(["p"], recursive=False) == ["p/a.JPG", "p/b.png"]
    assert find_images(["p"], recursive=True) == ["p/a.JPG", "p/b.png", "p/in/c.png"]
    assert find_images([".h"], recursive=False) == [".h/i.png"]  # a hidden folder that is named
    url = "https://example.org/x.png"
    assert find_images(["f.png", url, "./p/b.png", "p/", "f.png", url], recursive=False) == [
        "f.png", url, "p/b.png", "p/a.JPG",
    ]  # fmt: skip


def test_missing_images_are_refused():
    paint("p/in/a.png")
    for names, message in [
        (["nowhere"], "'nowhere' does not exist"),
        ([""], "'' does not exist"),
        (["p"], "'p' contains no images .*--recursive"),
        (["p/in/a.png/b"], "does not exist"),
    ]:
        with pytest.raises(UsageError, match=message):
            find_images(names, recursive=False)


def test_a_folder_is_never_a_single_image():
    paint("p/a.png")
    assert is_single_image(["p/a.png"]) and is_single_image(["https://example.org/a.png"])
    assert not is_single_image(["p"]) and not is_single_image(["p/a.png", "p/a.png"])


def test_images_are_read_from_urls(address):
    paint("a.png")
    Path("b.png").write_text("hello", encoding="utf-8")
    assert load(f"{address}/a.png").image.size == (8, 6)
    bad, missing = load(f"{address}/b.png"), load(f"{address}/c.png")
    assert bad.image is None and bad.problem == "not an image in a known format"
    assert missing.image is None and "404" in missing.problem


def test_a_missing_file_has_no_image():
    assert load("a.png").problem == "no such file"
    Path("a.png").mkdir()
    assert load("a.png").problem == "no such file"


# Jobs


@settings(deadline=None)
@given(JOBS, st.integers(1, 7))
def test_batches_keep_the_order_and_have_equal_questions(jobs, size):
    found = list(batches(jobs, size))
    assert [job for batch in found for job in batch] == jobs
    for batch, following in zip(found, [*found, []][1:], strict=True):
        assert 1 <= len(batch) <= size
        assert len({str(job.questions) for job in batch}) == 1
        # A batch is only smaller if the next questions differ.
        assert len(batch) == size or not following or following[0].questions != batch[0].questions


@settings(deadline=None)
@given(JOBS, st.data())
def test_answered_questions_are_not_asked_again(jobs, data):
    images = [job.image for job in jobs]
    every = [{"image": job.image, **question, "answer": "yes."} for job in jobs for question in job.questions]
    done = data.draw(st.lists(st.sampled_from(every), unique_by=str)) if every else []
    rest = open_jobs(images, ASKED, done)
    left = [(job.image, question["question"]) for job in rest for question in job.questions]
    told = [(record["image"], record["question"]) for record in done]
    assert left == [(image, name) for image in images for name in "abc" if (image, name) not in told]
    assert all(job.questions for job in rest)
    # An error is not an answer.
    failed = [{"image": image, "error": "cut off"} for image in images]
    assert open_jobs(images, ASKED, [*done, *failed]) == rest


def test_batches_are_loaded_in_order_and_one_ahead():
    names = [f"{index}.png" for index in range(7)]
    paint(*names)
    Path("3.png").write_bytes(Path("3.png").read_bytes()[:40])
    jobs = [Job(name, ASKED[:1]) for name in names]
    before = threading.active_count()
    with closing(loaded_batches(batches(jobs, 2))) as loaded:
        questions, first = next(loaded)
        assert questions == [ASKED[0]]
        assert [one.name for one in first] == names[:2]
        rest = [one for _, batch in loaded for one in batch]
    assert [one.name for one in rest] == names[2:]
    assert [one.name for one in rest if one.image is None] == ["3.png"]
    with closing(loaded_batches(batches(jobs, 1))) as loaded:
        next(loaded)  # stopping early leaves no threads
    assert threading.active_count() == before


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
@pytest.mark.parametrize("images", [[1], [1, 2, 3]])
def test_every_prompt_is_asked_about_every_image(images, prompts):
    calls = []

    def call(given: list, asked: list[str]) -> list[str]:
        calls.append(given)
        return [f"{image}{prompt}" for image, prompt in zip(given, asked, strict=True)]

    assert ask_each(call, images, prompts) == [[f"{image}{prompt}" for prompt in prompts] for image in images]
    assert calls == [sorted(images * len(prompts))]  # one call; the pairs of an image are consecutive


@pytest.mark.parametrize(("batch_size", "read"), [(6, [3]), (3, [2, 1]), (2, [1, 1, 1])])
def test_each_image_is_encoded_once_and_in_batches(taught_folder, batch_size, read):
    pipe = ShowoMMUPipeline.from_pretrained(taught_folder)
    images = [Image.new("RGB", (20, 16), colour) for colour in ("red", "lime", "blue")]
    prompts = ["what?", "two hearts"]
    expected = [[pipe(image, prompt, max_new_tokens=3).texts[0] for prompt in prompts] for image in images]
    calls = conversations.ForwardCalls(pipe)
    options = argparse.Namespace(max_new_tokens=3, batch_size=batch_size)
    assert generate_answers(pipe, images, prompts, options) == expected
    prefix = 1 + conversations.IMAGE_LENGTH  # mmu soi image eoi
    assert [rows for rows, length in calls if length == prefix] == read
