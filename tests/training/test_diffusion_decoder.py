"""Training of diffusion decoders on a folder of real files."""

import json
import math
import re
import shutil

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw

from showo_hf import ShowoDiffusionDecoder, ShowoForCausalLM
from showo_hf.processing.processing_showo import showo_image_processor
from showo_hf.schedulers.gaussian_diffusion import bound_weights, flow_bound_weights
from showo_hf.training.decoder_config import DiffusionDecoderConfig
from showo_hf.training.diffusion_decoder import (
    FrozenTokenizer,
    NoisedImages,
    batch_losses,
    decoder_losses,
    draw_noise,
    image_loss,
    load_decoder,
    load_tokenizer,
)
from showo_hf.training.dry_run import plan_of
from showo_hf.training.image_batches import ImageBuilder
from showo_hf.training.recipe_entries import RecipeError
from showo_hf.training.recipe_files import load_recipe
from showo_hf.training.run import TrainingError, Unfinished, run_recipe


SIZE = tiny.SIDE * tiny.FACTOR
ARCHITECTURE = {"patch_size": 2, "block_out_channels": [8, 16], "norm_num_groups": 4}
FOLDERS = ("data", "output", "model", "decoder", "teacher", "validation_data")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one precision per process, but every test here is a separate run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of discs, flat."""
    folder = tmp_path_factory.mktemp("images")
    for number, colour in enumerate(("red", "green", "blue", "orange") * 3):
        image = Image.new("RGB", (SIZE, SIZE), "white")
        ImageDraw.Draw(image).ellipse((3, 4, 10 + number % 5, 15), fill=colour)
        image.save(folder / f"disc-{number}.png")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.lfq().save_pretrained(folder)
    return folder


def recipe(images, tokenizer, output, **changes) -> DiffusionDecoderConfig:
    entries = {
        "architecture": ARCHITECTURE,
        "data": images,
        "model": tokenizer,
        "output": output,
        "steps": 4,
        "batch_size": 3,
        "logging_steps": 1,
        "save_steps": 2,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        **changes,
    }
    return load_recipe(
        "diffusion-decoder",
        [f"{key}={json.dumps(str(value) if key in FOLDERS else value)}" for key, value in entries.items()],
    )


def log_of(output) -> list[dict]:
    return [json.loads(line) for line in output.with_name(output.name + "-log.jsonl").read_text().splitlines()]


def pixels(seed=0, batch=2) -> torch.Tensor:
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    "prediction_type",
    ["flow_prediction", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("epsilon", "v_prediction"))],
)
def test_a_folder_of_images_becomes_a_decoder(images, tokenizer, tmp_path, prediction_type):
    output = tmp_path / "decoder"
    options = {"steps": 24, "learning_rate": 0.01, "validation_data": images, "eval_steps": 12, "eval_on_start": True}
    config = recipe(
        images, tokenizer, output, prediction_type=prediction_type, image_weight=0.2, decoder_steps=3, **options
    )
    run_recipe(config)
    decoder = ShowoDiffusionDecoder.from_pretrained(output)
    assert (decoder.config.prediction_type, decoder.config.num_inference_steps) == (prediction_type, 3)
    assert (decoder.config.sample_size, decoder.config.codebook_channels) == (SIZE, tiny.BITS)
    rows = [row for row in log_of(output) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 25))
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_diffusion"] + row["loss_image"], rel=1e-3)
    checks = [row for row in log_of(output) if "eval_loss" in row]
    assert [row["step"] for row in checks] == [0, 12, 24]
    assert checks[2]["eval_loss_diffusion"] < 0.95 * checks[0]["eval_loss_diffusion"]
    assert {"eval_loss_image", "eval_psnr"} <= checks[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "prediction_type",
    ["flow_prediction", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("epsilon", "v_prediction"))],
)
def test_a_trained_decoder_is_closer_to_the_images_than_the_tokenizer(images, tokenizer, tmp_path, prediction_type):
    """In one step, and in as many as it takes by default, with its own scheduler."""
    run_recipe(
        recipe(
            images,
            tokenizer,
            tmp_path / "out",
            steps=60,
            save_steps=60,
            learning_rate=0.01,
            prediction_type=prediction_type,
        )
    )
    decoder = ShowoDiffusionDecoder.from_pretrained(tmp_path / "out").eval()
    assert decoder.config.prediction_type == prediction_type
    real = torch.stack([to_pixels(images / f"disc-{number}.png") for number in range(8)])
    codes, decoded = FrozenTokenizer(load_tokenizer(str(tokenizer)))(real)
    for steps, most in ((1, 0.8), (None, 0.95)):
        found = decoder.decode(codes, decoded, steps, torch.Generator().manual_seed(0)).sample
        assert (found - real).square().mean() < most * (decoded - real).square().mean()


def to_pixels(file) -> torch.Tensor:
    image = Image.open(file)
    return torch.tensor(list(image.tobytes())).view(SIZE, SIZE, 3).movedim(-1, 0) / 127.5 - 1


@pytest.mark.parametrize("cached", [pytest.param(0, marks=pytest.mark.slow), 5])
def test_a_stopped_run_goes_on_to_the_same_weights(images, tokenizer, tmp_path, cached):
    """With a memory, the resumed run has to encode again what the stopped one knew."""
    options = {"mirror": True, "cached_images": cached, "ema_decay": 0.5}
    run_recipe(recipe(images, tokenizer, tmp_path / "whole", **options))
    with pytest.raises(Unfinished):
        run_recipe(recipe(images, tokenizer, tmp_path / "stopped", max_minutes=0.0, **options))
    run_recipe(recipe(images, tokenizer, tmp_path / "stopped", **options))
    whole, resumed = (
        ShowoDiffusionDecoder.from_pretrained(tmp_path / one).state_dict() for one in ("whole", "stopped")
    )
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    with pytest.raises(TrainingError, match="`image_weight` was 0.0 and is 0.5"):
        run_recipe(recipe(images, tokenizer, tmp_path / "stopped", image_weight=0.5, **options))


@pytest.mark.slow
def test_a_resumed_run_keeps_the_scale_of_its_first_images(images, tokenizer, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    config = recipe(folder, tokenizer, tmp_path / "out", steps=1)
    run_recipe(config)
    scale = ShowoDiffusionDecoder.from_pretrained(tmp_path / "out").config.residual_scale
    for file in folder.glob("*.png"):
        Image.new("RGB", (SIZE, SIZE), "black").save(file)
    assert load_decoder(config, FrozenTokenizer(load_tokenizer(str(tokenizer)))).config.residual_scale != scale
    run_recipe(config)
    assert ShowoDiffusionDecoder.from_pretrained(tmp_path / "out").config.residual_scale == scale


def test_a_dry_run_prints_a_plan_and_writes_nothing(images, tokenizer, tmp_path):
    plan = plan_of(recipe(images, tokenizer, tmp_path / "out"))
    assert "all trained" in plan and "16 x 16 pixels from 4 x 4 tokens" in plan and "images a step   3" in plan
    assert not list(tmp_path.iterdir())


# Tokenizers


def test_the_tokenizer_may_be_one_of_either_kind_or_that_of_a_model(images, tmp_path):
    tiny.vq().save_pretrained(tmp_path / "vq")
    run_recipe(recipe(images, tmp_path / "vq", tmp_path / "out", steps=1))
    assert ShowoDiffusionDecoder.from_pretrained(tmp_path / "out").config.codebook_channels == 4
    model = tiny.showo()
    model.save_pretrained(tmp_path / "model")
    found, weights = load_tokenizer(str(tmp_path / "model")).state_dict(), model.image_tokenizer.state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
    assert load_tokenizer("embedded").config.codebook_size == 2048, "that of a pipeline"


def test_a_model_without_images_has_no_tokenizer(tmp_path):
    ShowoForCausalLM(tiny.showo_config(images=False)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`model` need an image tokenizer"):
        load_tokenizer(str(tmp_path))


def test_images_are_encoded_once_and_the_memory_changes_nothing(monkeypatch):
    tokenizer = tiny.lfq()
    known, other = FrozenTokenizer(tokenizer, capacity=2), FrozenTokenizer(tokenizer, capacity=100)
    calls = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda values: calls.append(len(values)) or encode(values))
    both = pixels(batch=3)
    first, again = known(both), known(both)
    assert calls == [1] * 4, "two of three images are remembered"
    other(both[1:])
    for one, second, third in zip(first, again, other(both), strict=True):
        assert torch.equal(one, second) and torch.equal(one, third)
    codes, decoded = first
    assert torch.equal(codes, tokenizer.encode(both).quantized.sign())
    assert (decoded - tokenizer.decode(tokenizer.encode(both).image_tokens).sample).abs().max() <= 1 / 255 + 1e-6


def test_without_a_memory_a_batch_is_encoded_together(monkeypatch):
    tokenizer = tiny.lfq()
    together, alone = FrozenTokenizer(tokenizer), FrozenTokenizer(tokenizer, capacity=1)
    both = pixels(batch=3)
    calls = []
    for name in ("encode", "decode"):
        before = getattr(tokenizer, name)
        monkeypatch.setattr(tokenizer, name, lambda v, n=name, f=before: calls.append((n, len(v))) or f(v))
    codes, decoded = together(both)
    assert calls == [("encode", 3), ("decode", 3)] and not together.known
    expected, beside = alone(both)
    assert torch.equal(codes, expected)
    assert (decoded - beside).abs().max() <= 1 / 127.5 + 1e-6  # rounding may fall to either side


# The objective


def decoder_and(config_changes=None, **options):
    config = DiffusionDecoderConfig(recipe="x", output="y", steps=1, data="z", **(config_changes or {}))
    return config, tiny.image_decoder(prediction_type=config.prediction_type, **options)


def test_noise_depends_on_the_image_alone():
    _, decoder = decoder_and()
    clean = decoder.to_denoised(pixels(), torch.zeros(2, 3, SIZE, SIZE))
    both, one = draw_noise(decoder, clean, [7, 8]), draw_noise(decoder, clean[1:], [8])
    assert torch.equal(both.noised[1:], one.noised) and both.timestep[1] == one.timestep[0]
    many = draw_noise(decoder, clean[:1].expand(400, -1, -1, -1), range(400))
    assert 0 < many.timestep.min() < 20 and 980 < many.timestep.max() <= 1000
    assert many.noise.std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("weighting", ["simple", "bound"])
def test_the_losses_of_an_exact_prediction_are_zero_and_of_a_wrong_one_weighted(kind, weighting):
    config, decoder = decoder_and({"prediction_type": kind, "weighting": weighting, "image_weight": 1.0})
    clean = pixels(batch=4)
    draws = draw_noise(decoder, clean, range(4))
    alphas = decoder.scheduler.alphas_cumprod if kind != "flow_prediction" else None
    target = draws.noise - clean
    if kind == "epsilon":
        target = draws.noise
    if kind == "v_prediction":
        target = decoder.scheduler.get_velocity(clean, draws.noise, draws.timestep)
    exact = decoder_losses(config, decoder, draws, target)
    assert exact["diffusion"] == 0 and exact["image"] < 0.01
    wrong = decoder_losses(config, decoder, draws, target + 0.5)["diffusion"]
    weights = torch.ones(4)
    if weighting == "bound" and alphas is not None:
        weights = bound_weights(alphas, kind)[draws.timestep] / bound_weights(alphas, kind).mean()
    elif weighting == "bound":
        weights = flow_bound_weights(draws.timestep / 1000) / math.log(1000)
    torch.testing.assert_close(wrong, 0.25 * weights.mean())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_the_weights_of_the_bound_have_the_mean_1(kind):
    """A prediction that is wrong by 1 everywhere, at noise levels that are spread evenly."""
    config, decoder = decoder_and({"prediction_type": kind, "weighting": "bound"})
    levels = torch.arange(100_000) / 100_000 * 1000
    levels = levels + 0.005 if kind == "flow_prediction" else levels.long()
    zeros = torch.zeros(len(levels), 1, 1, 2)
    draws = NoisedImages(zeros, zeros, zeros, levels)
    losses = decoder_losses(config, decoder, draws, zeros + 1)
    assert losses["diffusion"].item() == pytest.approx(1, rel=1e-3)


def test_image_loss_counts_values_and_edges():
    flat = torch.zeros(1, 3, 4, 4)
    assert image_loss(flat, flat) == 0
    torch.testing.assert_close(image_loss(flat + 0.5, flat), torch.tensor(0.5))
    stripes = flat.clone()
    stripes[..., ::2] = 1  # half of the values differ, and every horizontal difference
    torch.testing.assert_close(image_loss(stripes, flat), torch.tensor(1.5))


def test_batch_losses_have_a_gradient_for_every_weight():
    config, decoder = decoder_and({"image_weight": 0.5})
    losses, quality = batch_losses(config, decoder, decoder, FrozenTokenizer(tiny.lfq()), pixels(), [1, 2])
    (losses["diffusion"] + losses["image"]).backward()
    assert all(weight.grad is not None and bool(torch.isfinite(weight.grad).all()) for weight in decoder.parameters())
    assert quality > 0


# What is trained


def test_the_scale_is_the_standard_deviation_of_the_first_images(images, tokenizer, tmp_path):
    frozen = FrozenTokenizer(load_tokenizer(str(tokenizer)))
    residual = load_decoder(recipe(images, tokenizer, tmp_path / "x"), frozen).config.residual_scale
    whole = load_decoder(recipe(images, tokenizer, tmp_path / "x", start="noise"), frozen).config.residual_scale
    real = torch.stack([to_pixels(file) for file in sorted(images.glob("*.png"))])
    codes, decoded = frozen(real)
    assert residual == pytest.approx((real - decoded).square().mean().sqrt().item(), rel=0.1)
    assert whole == pytest.approx(real.square().mean().sqrt().item(), rel=0.1)
    given = load_decoder(recipe(images, tokenizer, tmp_path / "x", residual_scale=0.25), frozen)
    assert given.config.residual_scale == 0.25


@pytest.mark.parametrize("prediction_type", ["flow_prediction", "epsilon"])
def test_noise_levels_do_not_depend_on_whether_an_image_is_mirrored(prediction_type):
    image = torch.linspace(-1, 1, SIZE).expand(3, SIZE, SIZE)
    builder, seeds = ImageBuilder(showo_image_processor(SIZE), mirror=True), range(100)
    mirrored = torch.tensor([not torch.equal(builder.moved(image, seed), image) for seed in seeds])
    decoder = tiny.image_decoder(prediction_type=prediction_type)
    levels = draw_noise(decoder, image.expand(len(seeds), -1, -1, -1), seeds).timestep
    for some in (levels[mirrored], levels[~mirrored]):
        assert len(some) > 30 and some.min() < 200 and some.max() > 800


def test_the_tokenizer_may_be_part_of_a_pipeline_on_the_hub(processor, tmp_path, hub_here):
    pipe = tiny.pipeline(processor)
    pipe.save_pretrained(tmp_path)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    hub_here.repositories["owner/pipe"] = {file.relative_to(tmp_path).as_posix(): file.read_bytes() for file in files}
    loaded = load_tokenizer("owner/pipe")
    assert torch.equal(loaded.encode(pixels()).image_tokens, pipe.image_tokenizer.encode(pixels()).image_tokens)


def test_a_decoder_may_be_part_of_a_pipeline(images, tokenizer, processor, tmp_path):
    pipe = tiny.pipeline(processor)
    pipe.register_modules(image_decoder=tiny.image_decoder(num_inference_steps=5))
    pipe.save_pretrained(tmp_path / "pipe")
    config = recipe(images, tokenizer, tmp_path / "out", decoder=tmp_path / "pipe", architecture={})
    decoder = load_decoder(config, FrozenTokenizer(load_tokenizer(str(tokenizer))))
    assert decoder.config.num_inference_steps == 5
    for name, value in pipe.image_decoder.state_dict().items():
        assert torch.equal(value, decoder.state_dict()[name])


def test_training_goes_on_from_a_decoder(images, tokenizer, tmp_path):
    run_recipe(recipe(images, tokenizer, tmp_path / "first", steps=1))
    frozen = FrozenTokenizer(load_tokenizer(str(tokenizer)))
    config = recipe(images, tokenizer, tmp_path / "second", decoder=tmp_path / "first", decoder_steps=1)
    second, first = load_decoder(config, frozen), ShowoDiffusionDecoder.from_pretrained(tmp_path / "first")
    assert second.config.num_inference_steps == 1 and first.config.num_inference_steps == 4
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    first.config.update({"num_inference_steps": 7, "low_band_sigma": 2.0})
    first.save_pretrained(tmp_path / "first")
    for given, kept in ((dict(low_band_sigma=3.0), (7, 3.0)), ({}, (7, 2.0))):
        config = recipe(images, tokenizer, tmp_path / "third", decoder=tmp_path / "first", **given)
        third = load_decoder(config, frozen).config
        assert (third.num_inference_steps, third.low_band_sigma) == kept
    tiny.lfq(codebook_bits=5).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="`decoder` and `model` do not fit: `codebook_channels` is 6 and 5"):
        load_decoder(config, FrozenTokenizer(load_tokenizer(str(tmp_path / "other"))))


def test_images_have_the_size_of_the_step(images, tokenizer, tmp_path, monkeypatch):
    """Validation and the plan have the size of the result."""
    seen = []
    original = FrozenTokenizer.__call__

    def read(frozen, pixel_values):
        seen.append((torch.is_grad_enabled(), pixel_values.shape[-1]))
        return original(frozen, pixel_values)

    sizes = {2: SIZE // 2, 0: SIZE, 3: 2 * SIZE}
    options = {"image_size": sizes, "residual_scale": 0.1, "validation_data": images, "eval_steps": 4}
    monkeypatch.setattr(FrozenTokenizer, "__call__", read)
    run_recipe(recipe(images, tokenizer, tmp_path / "out", **options))
    assert [size for training, size in seen if training] == [SIZE, SIZE, SIZE // 2, 2 * SIZE]
    assert {size for training, size in seen if not training} == {2 * SIZE}
    assert ShowoDiffusionDecoder.from_pretrained(tmp_path / "out").config.sample_size == 2 * SIZE
    seen.clear()
    plan_of(recipe(images, tokenizer, tmp_path / "planned", image_size={0: 2 * SIZE, 1: SIZE}, residual_scale=0.1))
    assert {size for _, size in seen} == {SIZE}


def test_a_size_of_the_schedule_that_the_tokenizer_cannot_encode_is_refused(images, tokenizer, tmp_path):
    config = recipe(images, tokenizer, tmp_path / "out", image_size={0: SIZE + 1, 2: SIZE})
    with pytest.raises(ValueError, match=f"`image_size` must be a multiple of {tiny.FACTOR}, got {SIZE + 1}"):
        load_decoder(config, FrozenTokenizer(load_tokenizer(str(tokenizer))))


GIVEN = {
    "prediction_type": ("epsilon", "v_prediction"),
    "start": ("noise", "image"),
    "residual_scale": (0.5, 0.25),
    "image_size": (SIZE, 2 * SIZE),
    "architecture": ({"block_out_channels": [8, 16]}, {"block_out_channels": [8, 24]}),
}


@pytest.mark.parametrize("key", GIVEN)
@pytest.mark.parametrize("argument", ["decoder", "teacher"])
def test_keys_of_a_loaded_decoder_are_its_own_or_refused(images, tokenizer, tmp_path, argument, key):
    """A loaded decoder is what it is. Keys that say so, or nothing, are taken."""
    options = {"prediction_type": "epsilon", "start": "noise", "residual_scale": 0.5}
    tiny.image_decoder(**options).save_pretrained(tmp_path / "first")
    frozen = FrozenTokenizer(load_tokenizer(str(tokenizer)))
    same, other = GIVEN[key]
    changes = {"architecture": {}, "decoder_steps": 2, argument: tmp_path / "first"}
    for given in ({}, {key: same}):
        config = recipe(images, tokenizer, tmp_path / "second", **{**changes, **given})
        decoder = load_decoder(config, frozen)
        assert {name: getattr(decoder.config, name) for name in options} == options
    config = recipe(images, tokenizer, tmp_path / "second", **{**changes, key: other})
    name, same, other = (
        ("architecture.block_out_channels", *(one["block_out_channels"] for one in (same, other)))
        if key == "architecture"
        else (key, same, other)
    )
    with pytest.raises(
        ValueError, match=re.escape(f"`{name}` must be that of the decoder, {same!r}, or left out, got {other!r}")
    ):
        load_decoder(config, frozen)


@pytest.mark.parametrize("argument", ["decoder", "teacher"])
def test_values_that_a_saved_decoder_could_not_load_with_are_refused(images, tokenizer, tmp_path, argument):
    tiny.image_decoder().save_pretrained(tmp_path / "first")
    frozen = FrozenTokenizer(load_tokenizer(str(tokenizer)))
    changes = {"architecture": {}, "decoder_steps": 2, argument: tmp_path / "first"}
    load_decoder(recipe(images, tokenizer, tmp_path / "second", **changes, low_band_sigma=float(SIZE)), frozen)
    config = recipe(images, tokenizer, tmp_path / "second", **changes, low_band_sigma=SIZE + 0.5)
    with pytest.raises(ValueError, match=f"`low_band_sigma` must be at most {SIZE}.*got {SIZE}.5"):
        load_decoder(config, frozen)
    with pytest.raises(RecipeError, match="`decoder_steps` must be at most 100.?000"):
        recipe(images, tokenizer, tmp_path / "second", **{**changes, "decoder_steps": 100_001})


def test_the_architecture_is_checked_with_a_loaded_decoder_too(images, tokenizer, tmp_path):
    tiny.image_decoder().save_pretrained(tmp_path / "first")
    config = recipe(images, tokenizer, tmp_path / "x", decoder=tmp_path / "first", architecture={"patch": 2})
    with pytest.raises(ValueError, match="did you mean 'patch_size'"):
        load_decoder(config, FrozenTokenizer(load_tokenizer(str(tokenizer))))


@pytest.mark.slow
def test_weights_are_saved_in_the_asked_dtype(images, tokenizer, tmp_path):
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        run_recipe(recipe(images, tokenizer, tmp_path / dtype, steps=1, save_dtype=dtype))
        sizes[dtype] = (tmp_path / dtype / "model.safetensors").stat().st_size
    assert sizes["bfloat16"] < 0.65 * sizes["float32"]
    assert ShowoDiffusionDecoder.from_pretrained(tmp_path / "bfloat16").dtype == torch.float32


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["prediction_type=sample"], "`prediction_type` must be one of epsilon, v_prediction, flow_prediction"),
        (
            ["weighting=bound", "teacher=t", "decoder_steps=2"],
            "`weighting` must be 'simple' with a `teacher`, got 'bound'",
        ),
        (["weighting=snr"], "`weighting` must be one of simple, bound, got 'snr'"),
        (["start=codes"], "`start` must be one of image, noise"),
        (["residual_scale=0"], "`residual_scale` must be greater than 0"),
        (["decoder_steps=0"], "`decoder_steps` must be an integer of at least 1, got 0"),
        (["teacher=t"], "`decoder_steps` must be given with a `teacher`"),
        (["cached_images=-1"], "`cached_images` must be an integer of at least 0"),
        (["push_steps=5"], "`push_steps` has no effect"),
        (["decode_steps=5"], "did you mean 'decoder_steps'"),
        (["data={t2i: x}"], "`data` must be one of image"),
    ],
)
def test_a_wrong_recipe_is_refused(entries, message):
    given = [entry for entry in ("data=x",) if not any(one.startswith("data") for one in entries)]
    with pytest.raises(RecipeError, match=message):
        load_recipe("diffusion-decoder", [*given, "output=y", "steps=1", *entries])


@pytest.mark.parametrize(
    ("architecture", "message"),
    [({"patch": 2}, "did you mean 'patch_size'"), ({"start": "noise"}, "`architecture` must hold .* got 'start'")],
)
def test_a_wrong_architecture_is_refused(images, tokenizer, tmp_path, architecture, message):
    config = recipe(images, tokenizer, tmp_path / "x", architecture=architecture)
    with pytest.raises(ValueError, match=message):
        load_decoder(config, FrozenTokenizer(load_tokenizer(str(tokenizer))))
