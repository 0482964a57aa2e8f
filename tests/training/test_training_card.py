"""The model card of a trained model."""

import html
import json
import math
import os
import re
from pathlib import Path

import pytest
import tiny
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from showo_hf import EMBEDDED_MODEL
from showo_hf.training.logs import RunLog
from showo_hf.training.publishing import files_of, publish
from showo_hf.training.training_card import (
    DataSource,
    FinalLoss,
    RunSummary,
    code,
    duration,
    escaped,
    fenced,
    plain,
    public,
    short,
    without_paths,
    write_training_card,
)


SETTINGS = {
    "data": "/home/someone/my-images",
    "model": None,
    "learning_rate": 2e-4,
    "steps": 500,
    "output": "/home/someone/my-lora",
    "push_to_hub": "someone/my-lora",
    "hub_token": "hf_secret",
    "lora": {"rank": 16, "targets": ["q_proj", "v_proj"]},
}


def summary(**kwargs) -> RunSummary:
    options = {
        "recipe": "lora",
        "kind": "adapter",
        "settings": SETTINGS,
        "base_model": EMBEDDED_MODEL,
        "steps": 500,
        "samples_seen": 8000,
        "seconds": 840.0,
        "device": "CPU, 2 threads",
        "dtype": "float32",
        "trained_parameters": 120_000,
        "total_parameters": 9_700_000,
        "data": [DataSource("/home/someone/my-images", 100, "cc-by-4.0"), DataSource("org/captions", None)],
        "losses": [FinalLoss("loss_t2i", 3.21, 3.456, math.log(1024))],
        "licence": "apache-2.0",
        "seed": 0,
    }
    return RunSummary(**(options | kwargs))


def read(file: Path) -> tuple[dict, str]:
    """The header of a card, and its text."""
    _, header, text = file.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


@pytest.fixture
def log(tmp_path) -> Path:
    log = RunLog(tmp_path / "out-log.jsonl")
    for step in range(1, 30):
        log.append({"step": step, "loss": 5 - step / 20, "loss_t2i": 5 - step / 20, "learning_rate": 1e-3})
    return log.file


@pytest.fixture
def sample(tmp_path) -> Path:
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("path", "/home/someone/secret")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "sample.png", pnginfo=metadata)
    return tmp_path / "sample.png"


def test_the_card_of_an_adapter(tmp_path, log, sample):
    folder = tmp_path / "out"
    folder.mkdir()
    shipped = {"learning_rate": 1e-4, "steps": 500, "lora": {"rank": 16, "targets": ["q_proj", "v_proj"]}}
    made = summary(samples=[("a red apple", sample)], shipped_settings=shipped, resumed=True)
    file = write_training_card(folder, made, "someone/my-lora", log)
    header, text = read(file)
    assert header == {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["show-o", "showo-hf", "lora"],
        "datasets": ["org/captions"],
    }
    assert "# my-lora" in text and "the model embedded in showo-hf" in text
    assert "ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)" in text
    assert 'pipe.load_lora_weights("someone/my-lora")' in text and 'pipe("a red apple")' in text
    assert "| steps | 500 (with a resume from a checkpoint) |" in text and "| time | 14 minutes |" in text
    assert "120,000 of 9,700,000 (1.24%)" in text and "| samples seen | 8,000 |" in text
    assert "`my-images`: 100 samples, licence: cc-by-4.0" in text
    assert "[org/captions](https://huggingface.co/datasets/org/captions)" in text
    assert "| loss_t2i (text to image: the masked image tokens) | 3.210 | 3.456 | 6.931 |" in text
    assert "learning_rate: 0.0002  # shipped: 0.0001\n" in text and "steps: 500  #" not in text
    assert "![Losses and learning rate by step](assets/curves.png)" in text
    assert re.search(r"showo-hf \S+, torch \S+, transformers \S+, diffusers \S+", text) and "peft" in text
    with Image.open(folder / "assets" / "curves.png") as image:
        assert image.width > 800
    with Image.open(folder / "assets" / "sample-1.png") as image:
        assert image.getpixel((0, 0)) == (255, 0, 0) and not image.text
    for secret in ("/home", "hf_secret", str(tmp_path), "EMBEDDED_MODEL/", os.path.dirname(EMBEDDED_MODEL)):
        assert secret not in file.read_text()


def test_the_card_of_a_pipeline_names_its_base(tmp_path):
    made = summary(kind="pipeline", base_model="org/show-o", tasks=("t2i", "lm", "mmu"), samples=())
    header, text = read(write_training_card(tmp_path, made, "someone/tuned"))
    assert header["base_model"] == "org/show-o" and header["base_model_relation"] == "finetune"
    assert header["pipeline_tag"] == "any-to-any"
    assert 'ShowoT2IPipeline.from_pretrained("someone/tuned")' in text and "load_lora_weights" not in text
    assert "[org/show-o](https://huggingface.co/org/show-o)" in text


def test_the_card_of_an_instruct_recipe_loads_the_pipeline_that_answers(tmp_path):
    made = summary(tasks=("mmu", "lm"), answers=[("what is this?", "a red apple")], base_model="/models/base")
    header, text = read(write_training_card(tmp_path, made))
    assert header["pipeline_tag"] == "image-text-to-text" and "base_model" not in header
    assert 'ShowoMMUPipeline.from_pretrained("folder-of-the-base-model")' in text
    assert 'load_lora_weights("folder-or-repository")' in text
    assert "<tr><td>what is this?</td><td>a red apple</td></tr>" in text and "`base`" in text


def test_a_licence_that_the_hub_does_not_know_is_another_one(tmp_path):
    header, text = read(write_training_card(tmp_path, summary(licence="My Own Licence 1.0")))
    assert header["license"] == "other" and header["license_name"] == "my-own-licence-1.0"
    assert "My Own Licence 1.0." in text
    header, text = read(write_training_card(tmp_path, summary(licence=None)))
    assert "license" not in header and "See the licence of the base model" in text


def test_a_card_needs_no_log_and_no_losses(tmp_path):
    made = summary(losses=(), data=(), settings={}, trained_parameters=None, seconds=0.0)
    RunLog(tmp_path / "empty.jsonl").append({"step": 1})
    text = read(write_training_card(tmp_path, made, log_file=tmp_path / "empty.jsonl"))[1]
    assert "curves" not in text and "## Losses" not in text and not (tmp_path / "assets").exists()


def test_the_next_card_replaces_the_images_of_the_last(tmp_path, sample, log):
    write_training_card(tmp_path, summary(samples=[("a", sample)] * 3), log_file=log)
    write_training_card(tmp_path, summary(samples=[("a", sample)]))
    assert os.listdir(tmp_path / "assets") == ["sample-1.png"]


def test_the_kind_is_checked():
    with pytest.raises(ValueError, match="`kind` must be one of pipeline, adapter, .*, got 'model'"):
        summary(kind="model")


def test_the_settings_in_the_card_are_a_recipe(tmp_path):
    text = read(write_training_card(tmp_path, summary()))[1]
    block = re.search("```yaml\n(.*?)\n```", text, re.DOTALL)[1]
    expected = {"data": "my-images", "model": None, "learning_rate": 2e-4, "steps": 500, "lora": SETTINGS["lora"]}
    assert yaml.safe_load(block) == expected


INJECTIONS = [
    "</td></tr></table><script>alert(1)</script>",
    "![x](https://evil.example/x.png)",
    "a\n\n# heading\n\n---\nlicense: mit\n---",
    "```\n# out of the block",
    '"); import os; os.system("x',
    "| a | b |",
    "[link](javascript:alert(1)) www.evil.example `code` **bold**",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_markup_in_the_users_text_has_no_effect(tmp_path, sample, text):
    settings = SETTINGS | {"instance": text, "list": [text]}
    made = summary(
        samples=[(text, sample)], answers=[(text, text)], settings=settings, shipped_settings={"instance": "a"}
    )
    header, body = read(write_training_card(tmp_path, made))
    clean_header, clean = read(write_training_card(tmp_path, summary(samples=[("a", sample)], answers=[("a", "a")])))
    assert header == clean_header
    outside = re.sub("(?ms)^(`{3,})\\w+\n.*?\n\\1$", "", body)  # without the blocks of code
    for word in ("<script", "![x]", "# heading", "# out", "[link]", 'os.system("'):
        if word in ("[link]", "![x]"):  # in the tables of HTML, brackets have no effect
            outside = re.sub("(?m)^<tr>.*$", "", outside)
        assert word not in outside
    assert body.count("<tr>") == clean.count("<tr>") and body.count("\n## ") == clean.count("\n## ")
    python = re.search("(?ms)^(`{3,})python\n(.*?)\n\\1$", body)[2]
    compile(python, "card", "exec")
    assert json.dumps(short(text), ensure_ascii=False) in python


@given(st.text(max_size=400))
def test_text_in_html_comes_back(text):
    made = escaped(text)
    assert "\n" not in made and len(short(text)) <= 300
    if short(text):
        assert html.unescape(made) == short(text) and not set("<>\"'") & set(made)


@given(st.text(max_size=400))
def test_text_in_markdown_comes_back(text):
    made = plain(text)
    assert html.unescape(made) == short(text)
    assert not set("*`[]<>|\\~$\"':@") & set(made) and "www." not in made.lower()


@given(st.text("`a|\\\n ", max_size=30))
def test_text_as_code_comes_back(text):
    made = code(text)
    fence = re.match("`+", made)[0]
    inner = made.removeprefix(fence).removesuffix(fence)
    assert inner.strip() == short(text)
    if short(text):
        assert fence not in re.findall("`+", inner) and not inner.startswith("`") and not inner.endswith("`")
    lines = fenced(text, "").split("\n")
    assert not any(line.startswith(lines[0]) for line in lines[1:-1])


parts = st.text("abcXYZ019_-.", min_size=1, max_size=8).filter(lambda part: part.strip("."))


@given(
    st.lists(parts, min_size=2, max_size=5), st.sampled_from(["/", "~/", "C:\\", "file:///", "../", "\\\\server\\"])
)
def test_no_path_stays_in_a_setting(names, root):
    separator = "\\" if "\\" in root else "/"
    path = root + separator.join(names)
    for value in (path, f"train={path}", f"a:{path},5", [path], {"nested": {"deeper": path}}, f"see '{path}' here"):
        left = json.dumps(public(value))
        assert names[-1] in left
        assert f"{names[-2]}{separator}{names[-1]}".replace("\\", "\\\\") not in left


@pytest.mark.parametrize(
    "text",
    ["https://example.org/a/b", "org/name", "and/or", "s3://bucket/a/b", "a photo of 1/2", "bf16", "q_proj|v_proj"],
)
def test_other_text_stays(text):
    assert without_paths(text) == text and public(text) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5, "5 seconds"),
        (60, "1 minute"),
        (3600, "1 hour"),
        (3660, "1 hour 1 minute"),
        (200_000, "2 days 7 hours 33 minutes"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_pipeline_with_its_card_is_uploaded(hub_here, processor, tmp_path, log, sample):
    folder = tmp_path / "out"
    tiny.pipeline(processor).save_pretrained(folder)
    made = summary(kind="pipeline", samples=[("owl", sample)])
    write_training_card(folder, made, "someone/tuned", log)
    assert files_of(folder)[1] == ()
    assert publish(folder, "someone/tuned").uploaded
    files = hub_here.repositories["someone/tuned"]
    assert {"README.md", "assets/curves.png", "assets/sample-1.png", "model_index.json"} < set(files)
    assert not any(str(tmp_path).encode() in content for content in files.values())
