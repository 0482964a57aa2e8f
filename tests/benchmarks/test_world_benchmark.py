"""The world's benchmark as a command: settings, parts that resume, and the tables that the model card shows."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import small_world
import tiny
import torch
from benchmarks import world
from benchmarks.pictures import generators
from benchmarks.world_judging import Wish
from benchmarks.world_prompts import KINDS, Prompt
from benchmarks.world_results import Results
from benchmarks.world_scripts import Step
from benchmarks.world_understanding import ASKED
from benchmarks.world_workbench import OBJECTS, asked_settings, plain
from safetensors.torch import load_file, save_file

from recipes.file_hashes import files_hash, weights_hash
from recipes.world.held_out import coloured
from recipes.world.publish import results_section
from recipes.world.questions import Question
from recipes.world.scenes import Item, Scene


def arguments_of(folder, output, *more):
    few = ["--steps", "1", "--known-scenes", "300", "--known-rows", "200"]
    return [*small_world.arguments_of(folder), "--output", str(output), *few, *more]


def stored(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_a_part_is_made_again_only_if_what_it_depends_on_changes(world_folder, tmp_path, monkeypatch):
    calls = []

    def converse(pipe, steps, objects, detector, seed, **options):
        calls.append({"seed": seed, **options})
        return [{"kind": "talk", "name": "talk", "right": True, "about": None}]

    monkeypatch.setattr(world, "converse", converse)

    def run(*more):
        world.main(arguments_of(world_folder, tmp_path, "--parts", "conversations", "--conversations", "2", *more))
        return len(calls)

    weights = world_folder / "model" / "model" / "model.safetensors"
    others = [world_folder / name for name in ("judge.safetensors", "model/model/config.json")]
    kept = {file: file.read_bytes() for file in (weights, *others)}
    assert run("--guidance", "0", "--seed", "5") == 2
    assert calls[1] == {"seed": 15, "max_new_tokens": 100, "num_inference_steps": 1, "guidance_scale": 0.0}
    settings = stored(tmp_path, "conversations-validation/001")["settings"]
    assert settings["guidance_scale"] == 0.0 and settings["num_inference_steps"] == 1 and settings["seed"] == 5
    assert (
        settings["scheduler"]["name"] == "MaskGITScheduler" and settings["scheduler"]["masking_schedule"] == "cosine"
    )
    assert settings["model_weights"] == weights_hash(world_folder / "model") and settings["clear_above"] == 0.5
    assert settings["objects"] == files_hash(world_folder / "objects", OBJECTS)
    assert run("--guidance", "0", "--seed", "5", "--count", "3") == 2, "--count is about other parts"
    assert run("--guidance", "0", "--seed", "5", "--scheduler-option", "masking_schedule=linear") == 4
    assert run() == 6, "another seed, and the pipeline's own guidance"
    default = stored(tmp_path, "conversations-validation/000")["settings"]["guidance_scale"]
    assert isinstance(default, float) and default > 0
    try:
        save_file({name: values + 1 for name, values in load_file(weights).items()}, weights, {"format": "pt"})
        assert run() == 8, "a model that was trained on under the same path"
        small_world.write_judge(world_folder)
        assert run() == 10, "another judge"
        assert run("--split", "test") == 12
        assert stored(tmp_path, "conversations-validation/000")["settings"]["split"] == "validation"
        others[1].write_bytes(kept[others[1]] + b"\n")
        assert run("--split", "test") == 14, "another config"
        monkeypatch.setattr(world, "script", lambda *which: [Step("talk", "talk", "another question", "")])
        assert run("--split", "test") == 16, "another script"
        monkeypatch.setattr(world, "script", lambda *which: [Step("talk", "talk", "another question", "yes.")])
        assert run("--split", "test") == 18, "another right answer"
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


def test_hashes_are_of_contents(tmp_path):
    for name, value in (("one", 0.0), ("two", 0.0), ("three", 1.0)):
        (tmp_path / name / "model").mkdir(parents=True)
        save_file({"weight": torch.full((3,), value)}, tmp_path / name / "model" / "model.safetensors")
    one, two, three = (weights_hash(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three
    (tmp_path / "two" / "decoder").mkdir()
    save_file({"weight": torch.zeros(3)}, tmp_path / "two" / "decoder" / "model.safetensors")
    assert weights_hash(tmp_path / "two") != one == weights_hash(tmp_path / "two", without="decoder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="`path` must be a file, or a folder with"):
        weights_hash(tmp_path / "empty")


def test_results_are_written_whole_and_tables_reach_the_card(tmp_path, capsys):
    results = Results(tmp_path)
    for count in (1, 1, 2):
        results.part("part", lambda: {"value": 3}, {"count": count, "pair": (1, 2)})
    assert capsys.readouterr().err.count("part: done") == 2
    assert not list(tmp_path.glob("*.part"))
    results.table("validation", "Turns", ["turn", "right"], [["all", "71%"]], {})
    results.table("validation", "Turns", ["turn", "right"], [["all", "72%"]], {})
    assert "| all | 72% |" in capsys.readouterr().out
    assert results_section(tmp_path) == "\n**Turns**\n\n| turn | right |\n| --- | --- |\n| all | 72% |\n"


def test_tables_of_other_weights_are_removed(tmp_path, capsys):
    results = Results(tmp_path)
    for title, settings in (("judge", {}), ("old name", {"model_weights": "1"}), ("new name", {"model_weights": "2"})):
        results.table("test", title, ["kind"], [["single"]], settings)
    assert set(json.loads((tmp_path / "tables-test.json").read_text())) == {"judge", "new name"}


def test_what_is_asked_is_known_by_scenes_and_answers_too():
    one, other = (Scene((Item("dog", None, column, 4),), "flat") for column in (0, 7))
    question = Question("where", "where is it?", "on the left.", frozenset({coloured("dog", "red")}))
    asked = [
        [Prompt("single", one, "a dog")],
        [Prompt("single", other, "a dog")],
        [(one, question)],
        [(one, dataclasses.replace(question, answer="on the right."))],
        [(other, question)],
        [Step("draw", "draw", "a dog", "", wishes=(Wish(one),))],
        [Step("draw", "draw", "a dog", "", wishes=(Wish(one, placed=True),))],
    ]
    hashes = [asked_settings(some)["asked"] for some in asked]
    assert len(set(hashes)) == len(asked) and hashes == [asked_settings(some)["asked"] for some in asked]
    assert plain(frozenset("dcba")) == ["a", "b", "c", "d"], "sets have another order in each process"
    pairs = Wish(one, frozenset({frozenset("fe"), frozenset("ba")}))
    assert plain(pairs) == [[[["dog", None, 0, 4]], "flat", "white"], [["a", "b"], ["e", "f"]], False]


def test_other_replacements_with_the_same_words_are_painted_anew(world_folder, tmp_path, monkeypatch, capsys):
    def run():
        world.main(arguments_of(world_folder, tmp_path, "--parts", "inpainting", "--count", "1"))
        return capsys.readouterr().err.count("done")

    assert [run(), run()] == [2, 0]
    draw = world.draw_replacements

    def others(*arguments):
        found = [one.before for one in draw(*arguments)]
        nights = [dataclasses.replace(one, background="night") for one in found]
        return [dataclasses.replace(one, before=night) for one, night in zip(draw(*arguments), nights, strict=True)]

    monkeypatch.setattr(world, "draw_replacements", others)
    assert run() == 2


def test_wordings_with_the_same_ids_are_not_drawn_again(world_folder, tmp_path, monkeypatch, capsys):
    drawn = []
    made = world.Benchmark.generated
    monkeypatch.setattr(world.Benchmark, "generated", lambda self, texts: drawn.append(texts) or made(self, texts))
    monkeypatch.setattr(world, "WORDED_KINDS", ("single",))
    world.main(arguments_of(world_folder, tmp_path, "--parts", "wordings", "--count", "1"))
    result = stored(tmp_path, "wordings-validation-single")["result"]
    assert [name for name, one in result.items() if one["same_ids"]] == ["canonical", "title case"]
    assert len(drawn) == 4 and not any(texts[0].istitle() for texts in drawn)
    assert (tmp_path / "images-validation-single.json").exists(), "the canonical wording is the part `images`"
    assert "(same ids)" in capsys.readouterr().out


@pytest.mark.slow
def test_all_parts_run_and_resume(world_folder, tmp_path, capsys):
    arguments = arguments_of(world_folder, tmp_path, "--count", "2", "--conversations", "1")
    world.main(arguments)
    first = capsys.readouterr()
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json") if not file.stem.startswith("tables")}
    assert len(files) == 6 + 12 + 3 + 2 + len(ASKED) + 1
    for kind in KINDS:
        image = stored(tmp_path, f"images-validation-{kind}")
        assert 0 <= image["result"]["right"] <= image["result"]["as_geneval"] <= 1 and image["result"]["detail"] > 0
        assert image["settings"]["split"] == "validation" and image["settings"]["num_inference_steps"] == 1
        assert stored(tmp_path, f"images-train-{kind}")["settings"]["split"] == "train"
        assert stored(tmp_path, f"judge-validation-{kind}")["result"]["tokenizer"]["detail"] > 0
    assert "| binding |" in first.out and "blind guess" in first.out and "| all |" in first.out
    world.main(arguments)
    again = capsys.readouterr()
    assert "done" in first.err and "done" not in again.err
    tables = [[line for line in out.splitlines() if line.startswith("|")] for out in (first.out, again.out)]
    assert tables[0] == tables[1] and all(line in results_section(tmp_path) for line in tables[0])
    assert {file: file.stat().st_mtime_ns for file in files} == files
    world.main([*arguments, "--parts", "images", "trained", "--split", "test"])
    third = capsys.readouterr().err
    assert "images-test-single: done" in third and "images-train-single: done" not in third


def test_the_judge_alone_needs_no_model(world_folder, tmp_path, capsys):
    folders = ["--objects", str(world_folder / "objects"), "--output", str(tmp_path)]
    common = [*folders, "--count", "2", "--known-scenes", "300"]
    world.main([*common, "--parts", "judge", "--detector-steps", "1"])
    assert "| single |" in capsys.readouterr().out
    assert (tmp_path / "detector.safetensors").exists() and (tmp_path / "judge-validation-single.json").exists()
    with pytest.raises(SystemExit):
        world.main([*common, "--parts", "images"])
    assert "--model is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        world.main(arguments_of(world_folder, tmp_path, "--scheduler", "nothing"))
    assert "`--scheduler` must be one of" in capsys.readouterr().err


@pytest.mark.parametrize("with_decoder", [False, True])
def test_the_ceiling_is_decoded_as_the_images_of_the_pipeline(with_decoder):
    pipe = tiny.pipeline(tiny.processor())
    if with_decoder:
        pipe.register_modules(image_decoder=tiny.image_decoder())
    benchmark = SimpleNamespace(pipe=pipe, options=SimpleNamespace(seed=5))
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = world.Benchmark.through_tokens(benchmark, images, batch_size=2)
    tokens = pipe.image_tokenizer.encode(images).image_tokens
    expected = [
        pipe.decode_pixels(one[None], generator) for one, generator in zip(tokens, generators(5, 5), strict=True)
    ]
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)
    assert torch.allclose(found, pipe.decode_pixels(tokens, decoder_steps=0), atol=1e-3) != with_decoder
