"""The comparison of samplers on the world: what it measures, its settings, tables and plot."""

import argparse
import json

import pytest
import small_world
import torch
from benchmarks import sampling, world_samplers
from benchmarks.world_samplers import KINDS, Samplers, Setting
from benchmarks.world_workbench import DETECTOR_STEPS
from perfect_judge import Perfect
from PIL import Image

from showo_hf.schedulers import EntropyBoundScheduler, MaskAndReplaceScheduler


def arguments_of(folder, results, *more):
    return [*small_world.arguments_of(folder), "--results", str(results), "--count", "1", *more]


def options_of(folder, results):
    names = {"model": "model", "objects": "objects", "detector": "judge.safetensors"}
    paths = {option: str(folder / name) for option, name in names.items()}
    return argparse.Namespace(**paths, results=results, count=2, batch_size=3, seed=0, detector_steps=DETECTOR_STEPS)


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_steps_alone_counts_the_steps_of_each_image():
    after = [[True, False, True], [True, False, False], [False, False, False], [False, False, False]]
    assert sampling.steps_alone([torch.tensor(unfinished) for unfinished in after]) == [3, 1, 2]


def test_a_sampler_keeps_what_the_model_has_set():
    config = {"mask_token_id": 64, "masking_schedule": "linear"}
    assert isinstance(sampling.scheduler_of("mask-and-replace, purity", config), MaskAndReplaceScheduler)
    scheduler = sampling.scheduler_of("entropy-bound, 16 nats", config)
    assert isinstance(scheduler, EntropyBoundScheduler)
    assert scheduler.config.entropy_bound == 16.0 and scheduler.config.masking_schedule == "linear"
    scheduler = sampling.scheduler_of("maskgit, temperature 1", {**config, "temperature": 4.0})
    assert scheduler.config.temperature == 1.0
    assert sampling.file_stem("entropy-bound, 16 nats") == "entropy-bound-16-nats"


@pytest.mark.slow
def test_each_sampler_is_measured_once_and_plotted(world_folder, tmp_path, capsys):
    plot, results = tmp_path / "plot.png", tmp_path / "results"
    arguments = arguments_of(world_folder, results, "--steps", "1", "2", "--guidance", "1", "--temperatures", "3")
    world_samplers.main([*arguments, "--plot", str(plot)])
    first = capsys.readouterr()
    names = {f"{sampling.file_stem(one)}-{steps}-steps-guidance-2.75" for one in sampling.SETTINGS for steps in (1, 2)}
    names |= {f"maskgit-16-steps-guidance-{more}" for more in ("1", "2.75", "2.75-temperature-3")}
    assert {file.stem for file in results.glob("*.json")} == names | {"tables-validation"}
    for name in names:
        stored = json.loads((results / f"{name}.json").read_text())
        result, settings = stored["result"], stored["settings"]
        assert len(result["right"]) == len(result["as_geneval"]) == len(KINDS)
        assert result["detail"] > 0 and result["seconds_a_step"] > 0
        assert result["seconds_decoding"] > 0
        assert 1 <= result["steps_run"] <= settings["num_inference_steps"]
        assert settings["split"] == "validation" and settings["kinds"] == list(KINDS)
        if settings["scheduler"]["name"] == "MaskGITScheduler":
            assert settings["scheduler"]["temperature"] == (3 if "temperature-3" in name else 1)
    head, _, *rows = rows_of(first.out)
    assert head[:2] == ["sampler", "steps at most"] and head[4] == "points against maskgit 16"
    samplers, scales = rows[: 2 * len(sampling.SETTINGS)], rows[2 * len(sampling.SETTINGS) + 2 :]
    assert [row[:2] for row in samplers] == [[one, steps] for one in sampling.SETTINGS for steps in ("1", "2")]
    scales, temperatures = scales[:2], scales[4:]
    assert [row[0] for row in scales] == ["1", "2.75"] and scales[1][3] == "-"
    assert [row[0] for row in temperatures] == ["1", "3"] and temperatures[0] == ["1", *scales[1][1:]]
    with Image.open(plot) as image:
        assert image.width > image.height > 300
    world_samplers.main([*arguments, "--samplers", "halton", "--steps", "1"])
    again = capsys.readouterr()
    assert "done" in first.err and "done" not in again.err, "all are read from their files"
    assert [row for row in rows_of(again.out) if row[0] == "halton"] == [samplers[4]]
    world_samplers.main([*arguments, "--samplers", "halton", "--steps", "1", "--seed", "1"])
    assert capsys.readouterr().err.count("done") == 4, "other prompts"


def test_the_judge_decides_and_differences_are_paired(world_folder, tmp_path):
    bench = Samplers(options_of(world_folder, tmp_path))
    scenes = [prompt.scene for prompt in bench.asked]
    bench.detector = Perfect(scenes)
    result = bench.measured(bench.sampling(1))
    assert result["as_geneval"] == [True] * 8, "the judge sees what was asked for"
    bench.detector = Perfect([*scenes[1:4], scenes[0], *scenes[4:]])
    assert bench.measured(bench.sampling(1))["as_geneval"] == [False] * 4 + [True] * 4
    one, other = {"right": [True] * 6 + [False] * 2}, {"right": [True] * 4 + [False] * 3 + [True]}
    assert bench.difference(one, other).startswith("+12.5 ± ")
    assert bench.difference(other, one).startswith("-12.5 ± ")
    assert bench.difference(one, one) == "+0.0 ± 0.0"


def test_steps_and_decoding_are_timed_apart(world_folder, tmp_path, monkeypatch):
    bench = Samplers(options_of(world_folder, tmp_path))
    # Two batches of 3 and 2 images: the start, two steps, and the end, after the decoding.
    clock = iter([0.0, 1.0, 3.0, 4.5, 10.0, 11.0, 12.0, 13.0])
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(clock))
    _, cost = sampling.make(bench.pipe, ["a dog"] * 5, 3, 0, num_inference_steps=2)
    assert cost["seconds_a_step"] == pytest.approx((3.0 + 2.0) / (2 * 3 + 2 * 2))
    assert cost["seconds_decoding"] == pytest.approx((1.5 + 1.0) / 5)


def test_seconds_are_those_of_the_steps_of_an_image_alone_and_of_its_decoding(world_folder, tmp_path):
    bench = Samplers(options_of(world_folder, tmp_path))
    result = {"right": [True] * 8, "as_geneval": [True] * 8, "detail": 0.5, "steps_run": 2.5}
    cost = {"seconds_a_step": 0.25, "seconds_decoding": 0.375}
    assert bench.columns(result | cost, result)[-1] == "1.00"


def test_guidance_scales_and_temperatures_are_those_of_the_reference_and_the_models_own():
    options = argparse.Namespace(samplers=["halton"], steps=[4], guidance=[5.0, 1.0], temperatures=[8.0, 3.0, 1.0])
    samplers, scales, temperatures = world_samplers.settings_of(options, 2.0, 3.0)
    assert samplers == [Setting("halton", 4, 2.0)]
    assert scales == {scale: Setting("maskgit", 16, scale) for scale in (1.0, 2.0, 5.0)}
    own = Setting("maskgit", 16, 2.0)
    assert temperatures == {1.0: own._replace(temperature=1.0), 3.0: own, 8.0: own._replace(temperature=8.0)}
    assert list(temperatures) == [1.0, 3.0, 8.0]


def test_the_images_are_those_of_the_model(world_folder, tmp_path):
    bench = Samplers(options_of(world_folder, tmp_path))
    texts = [prompt.text for prompt in bench.asked]
    images, cost = sampling.make(bench.pipe, texts, 3, 7, **bench.sampling(2))
    alone = bench.pipe(texts[4], num_inference_steps=2, generator=torch.Generator().manual_seed(11), output_type="pt")
    assert images.shape == (8, 3, 96, 96) and cost["steps_run"] == 2
    assert torch.allclose(images[4], alone.images[0] * 2 - 1, atol=1e-4)


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--guidance", "-1"], ["--samplers", "ddim"]])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        world_samplers.main(wrong)
    assert wrong[0] in capsys.readouterr().err
