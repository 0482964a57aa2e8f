"""What a run says before it starts."""

import shutil

import pytest
import small_run
from PIL import Image
from transformers import TrainingArguments

from showo_hf.training import run_checks
from showo_hf.training.recipe_files import load_recipe


@pytest.mark.parametrize(
    ("bf16", "is_fast", "warned"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_it_warns_of_bf16_on_a_cpu_that_lacks_it(monkeypatch, tmp_path, capsys, bf16, is_fast, warned):
    monkeypatch.setattr(run_checks, "computes_bfloat16", lambda: is_fast)
    run_checks.warn_of_slow_bf16(TrainingArguments(str(tmp_path), use_cpu=True, bf16=bf16, report_to="none"))
    printed = capsys.readouterr().err
    assert ("bf16=false is many times faster" in printed, printed.count("\n")) == (warned, int(warned))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"logging_steps": 5, "warmup_steps": 4}, []),
        ({"logging_steps": 6, "warmup_steps": 4}, ["no loss is logged"]),
        ({"logging_steps": 0.5, "warmup_steps": 5}, ["stays below `learning_rate`"]),
        ({"logging_steps": 6, "warmup_steps": 0.5, "lr_scheduler_type": "constant"}, ["no loss is logged"]),
        ({"logging_strategy": "no", "warmup_steps": 9, "lr_scheduler_type": "constant"}, []),
        ({"logging_steps": 9, "warmup_steps": 9}, ["no loss is logged", "stays below `learning_rate`"]),
    ],
    ids=str,
)
def test_it_says_what_a_run_is_too_short_for(tmp_path, capsys, options, said):
    config = load_recipe("vq-tokenizer", ["data=x", "output=y", "steps=5", "image_size=32", "discriminator=null"])
    run_checks.warn_of_short_runs(TrainingArguments(str(tmp_path), max_steps=5, report_to="none", **options), config)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True))


def test_it_names_what_begins_after_the_last_step(tmp_path, capsys):
    entries = ["data=x", "output=y", "steps=5", "image_size={0: 32, 4: 48, 5: 64, 9: 128}", "discriminator.start=5"]
    args = TrainingArguments(str(tmp_path), max_steps=5, logging_steps=1, report_to="none")
    run_checks.warn_of_short_runs(args, load_recipe("lfq-tokenizer", entries))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["image_size.5=64", "image_size.9=128", "discriminator.start=5"]
    run_checks.warn_of_short_runs(args, load_recipe("lfq-tokenizer", [*entries[:3], "discriminator.start=4"]))
    assert capsys.readouterr().err == ""


def test_it_names_images_that_no_row_names(tmp_path, capfd):
    """Once, though two tasks read the folder. A hidden file is no image of the data."""
    folder = tmp_path / "images"
    shutil.copytree(small_run.shared() / "images", folder)
    data = {"t2i": str(folder), "lm": str(folder)}
    small_run.run(tmp_path / "whole", data=data, steps=1)
    assert "not used" not in capfd.readouterr().err
    (folder / "more").mkdir()
    for name in ("more/a.png", "b.JPG", ".c.png"):
        Image.new("RGB", (16, 16)).save(folder / name)
    (folder / "notes.txt").touch()
    small_run.run(tmp_path / "part", data=data, steps=1)
    lines = [line for line in capfd.readouterr().err.splitlines() if "not used" in line]
    assert lines == [
        f"showo-hf: 2 images in '{folder}' have no row in its metadata.jsonl and are not used: b.JPG, more/a.png"
    ]
