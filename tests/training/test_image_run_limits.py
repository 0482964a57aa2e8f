"""Limits of the trainings on images: steps of decoders, memory of images, validation images, checkpointing."""

import pytest
import tiny
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from showo_hf.processing.processing_showo import showo_image_processor
from showo_hf.training.diffusion_decoder import FrozenTokenizer, load_decoder, load_tokenizer
from showo_hf.training.image_batches import ImageBuilder, even_counts, validation_images
from showo_hf.training.recipe_files import load_recipe
from showo_hf.training.run import run_recipe


SIZE = tiny.SIDE * tiny.FACTOR
ARCHITECTURE = "architecture={patch_size: 2, block_out_channels: [8, 16], norm_num_groups: 4}"


@pytest.fixture
def tokenizer(tmp_path):
    tiny.lfq().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def folder_of_images(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (2 * SIZE, 2 * SIZE), (40 * number, 90, 200)).save(folder / f"{number}.png")
    return folder


def recipe(tmp_path, *entries):
    fixed = ["steps=4", "batch_size=3", "report_to=none", "warmup_steps=0"]
    paths = [f"data={tmp_path / 'images'}", f"model={tmp_path / 'tokenizer'}", f"output={tmp_path / 'out'}"]
    return load_recipe("diffusion-decoder", [*paths, *fixed, *entries])


# Steps of a decoder


@pytest.mark.parametrize("loaded", [True, False])
def test_steps_that_the_scheduler_cannot_take_are_refused(tmp_path, tokenizer, loaded):
    tiny.image_decoder(prediction_type="epsilon").save_pretrained(tmp_path / "first")
    start = [f"decoder={tmp_path / 'first'}"] if loaded else [ARCHITECTURE, "prediction_type=epsilon"]
    config = recipe(tmp_path, "decoder_steps=1001", *start)
    with pytest.raises(ValueError, match="`decoder_steps` must be at most 1.?000, got 1.?001"):
        load_decoder(config, FrozenTokenizer(load_tokenizer(str(tokenizer))))


def test_a_scheduler_must_take_the_default_number_of_steps():
    decoder = tiny.image_decoder(num_inference_steps=2000)
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    before = decoder.config.scheduler
    with pytest.raises(ValueError, match="`num_inference_steps` must be at most 1.?000, got 2.?000"):
        decoder.set_scheduler(scheduler)
    assert decoder.config.scheduler == before and decoder.scheduler is not scheduler
    decoder.config.num_inference_steps = 1000
    decoder.set_scheduler(scheduler)


# Memory of images


def test_the_memory_forgets_images_of_the_size_before(tmp_path, tokenizer, monkeypatch):
    folder_of_images(tmp_path / "images", 3)
    read, sizes = FrozenTokenizer.read, []
    monkeypatch.setattr(FrozenTokenizer, "read", lambda one, x: sizes.append(x.shape[-1]) or read(one, x))
    entries = f"image_size={{0: {SIZE}, 2: {2 * SIZE}}}"
    run_recipe(recipe(tmp_path, ARCHITECTURE, entries, "cached_images=3", "residual_scale=0.1"))
    assert sizes == [SIZE] * 3 + [2 * SIZE] * 3, "each image is read once in each size"


# Validation images


def test_each_validation_image_of_several_folders_comes_once(tmp_path):
    sources = [folder_of_images(tmp_path / f"validation-{count}", count) for count in (2, 5)]
    builder = ImageBuilder(showo_image_processor(SIZE))
    for wanted, counts in ((64, (2, 5)), (5, (2, 3)), (2, (1, 1))):
        listed = ", ".join(map(str, sources))
        config = recipe(tmp_path, f"validation_data=[{listed}]", f"validation_rows={wanted}")
        keys = [key for batch in validation_images(config, builder) for key in batch.keys]
        assert len(set(keys)) == len(keys) == sum(counts)
        assert tuple(sum(str(source) in key for key in keys) for source in sources) == counts


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 120))
def test_counts_are_even_and_complete(sizes, total):
    counts = even_counts(sizes, total)
    assert sum(counts) == min(total, sum(sizes)) and all(
        0 <= one <= size for one, size in zip(counts, sizes, strict=True)
    )
    short = [one for one, size in zip(counts, sizes, strict=True) if one < size]
    assert not short or max(counts) - min(short) <= 1


# Checkpointing


def test_gradient_checkpointing_of_a_decoder_gives_the_same_gradients():
    decoder = tiny.image_decoder().train()
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(2, channels, SIZE, SIZE, generator=generator) for channels in (3, 3)]
    codes = torch.randn(2, tiny.BITS, tiny.SIDE, tiny.SIDE, generator=generator).sign()

    def gradients():
        decoder.zero_grad()
        decoder(values[0], torch.tensor([100.0, 900.0]), codes, values[1]).square().mean().backward()
        return {name: weight.grad.clone() for name, weight in decoder.named_parameters() if weight.grad is not None}

    plain = gradients()
    decoder.activation_checkpointing_enable()
    assert decoder.is_activation_checkpointing
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name])
