"""A diffusion decoder as a component of the pipelines that make images."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import accelerate
import pytest
import tiny
import torch
from conversations import PROCESSOR, generator, pixels, random_chat_pipeline
from diffusers import DPMSolverMultistepScheduler
from image_pipelines import EDIT_ARGUMENTS, EDITING_PIPELINES, block_mask, make_pipeline, shared_model

from showo_hf import (
    ShowoDiffusionDecoder,
    ShowoExtrapolatePipeline,
    ShowoInpaintPipeline,
    ShowoMMUPipeline,
    ShowoT2IPipeline,
)


PROMPTS = ["owl", "a green pear"]
SIDE = tiny.SIDE * tiny.FACTOR


def decoded(kind=ShowoT2IPipeline, **options):
    """A pipeline with an image decoder whose image differs visibly from the tokenizer's."""
    pipe = make_pipeline(kind)
    pipe.register_modules(image_decoder=tiny.image_decoder(residual_scale=0.5, **options))
    return pipe


def draw(pipe, prompt="owl", generators=None, **options) -> torch.Tensor:
    """Images (batch, 3, H, W) in [0, 1]."""
    options = {"num_inference_steps": 3, "output_type": "pt", "generator": generators or generator(1)} | options
    return pipe(prompt, **options).images


def test_a_pipeline_uses_its_image_decoder_on_the_same_tokens():
    plain, pipe = make_pipeline(ShowoT2IPipeline), decoded()
    tokens = draw(plain, output_type="latent")
    assert torch.equal(draw(pipe, output_type="latent"), tokens)
    image, codes = shared_model().decode_images(tokens), shared_model().image_codes(tokens)
    drawn = torch.Generator().manual_seed(1)
    pipe(prompt="owl", num_inference_steps=3, generator=drawn, output_type="latent")  # the draws of the tokens
    expected = pipe.image_decoder.decode(codes, image, generator=drawn).sample / 2 + 0.5
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=1e-6)
    assert (draw(pipe) - draw(plain)).abs().mean() > 0.02


def test_the_codes_may_be_those_of_a_codebook_of_vectors():
    model = tiny.showo_with("vq", text_ids=PROCESSOR.pad_token_id)
    channels = model.image_tokenizer.config.codebook_channels
    pipe = make_pipeline(ShowoT2IPipeline, model)
    pipe.register_modules(image_decoder=tiny.image_decoder(residual_scale=0.5, codebook_channels=channels))
    tokens, drawn = draw(pipe, output_type="latent"), torch.Generator().manual_seed(2)
    found = pipe.decode_latents(tokens, "pt", generator(2))
    image = pipe.image_decoder.decode(model.image_codes(tokens), model.decode_images(tokens), generator=drawn).sample
    torch.testing.assert_close(found, image / 2 + 0.5, rtol=0, atol=1e-6)


def test_steps_are_the_decoders_by_default_and_zero_leaves_it_out():
    plain, pipe = make_pipeline(ShowoT2IPipeline), decoded(num_inference_steps=3)
    assert torch.equal(draw(pipe, decoder_steps=0), draw(plain))
    assert torch.equal(draw(pipe), draw(pipe, decoder_steps=3))
    assert not torch.equal(draw(pipe), draw(pipe, decoder_steps=1))


def test_images_of_a_batch_are_those_of_their_generators_alone():
    pipe = decoded()
    seeds = [3, 4]
    together = draw(pipe, PROMPTS, [generator(seed) for seed in seeds])
    for row, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        torch.testing.assert_close(together[row : row + 1], draw(pipe, prompt, [generator(seed)]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", EDITING_PIPELINES)
def test_editing_uses_the_image_decoder(kind):
    options = {"image": pixels(), **EDIT_ARGUMENTS[kind]}
    plain, pipe = make_pipeline(kind), decoded(kind)
    assert torch.equal(draw(pipe, decoder_steps=0, **options), draw(plain, **options))
    assert (draw(pipe, **options) - draw(plain, **options)).abs().mean() > 0.02
    assert torch.equal(draw(pipe, **options), draw(pipe, **options))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ShowoInpaintPipeline, {"mask_image": block_mask(slice(3, 4), slice(3, 4))}),
        (ShowoExtrapolatePipeline, {"direction": ["right", "down"], "extent": 2 * tiny.FACTOR}),
    ],
)
def test_kept_pixels_stay(kind, arguments):
    pipe = decoded(kind)
    image = pixels(size=(SIDE, SIDE))
    options = {"image": image, "preserve_pixels": True, **arguments}
    found = draw(pipe, **options)
    original = torch.tensor(list(image.tobytes())).view(1, SIDE, SIDE, 3).movedim(-1, 1) / 255
    corner = (..., slice(0, 8), slice(0, 8))  # farther than a patch from what is new
    torch.testing.assert_close(found[corner], original[corner], rtol=0, atol=1e-6)
    assert not torch.equal(found, draw(pipe, **options, decoder_steps=0))


def test_conversations_use_the_image_decoder():
    plain, pipe = random_chat_pipeline(), random_chat_pipeline()
    pipe.register_modules(image_decoder=tiny.image_decoder(residual_scale=0.5))
    options = {"num_inference_steps": 2, "max_new_tokens": 3, "max_images": 1, "output_type": "pt"}

    def images(pipe, **more):
        answer = pipe("draw an owl", generator=generator(2), **options, **more)
        return [part["image"] for part in answer.content if part["type"] == "image"]

    (image,), (without,), (off,) = images(pipe), images(plain), images(pipe, decoder_steps=0)
    assert torch.equal(off, without)
    assert (image - without).abs().mean() > 0.02
    session = pipe.start().send("draw an owl", generator=generator(2), **options)
    assert torch.equal([part["image"] for part in session.content if part["type"] == "image"][0], image)


def test_a_saved_pipeline_loads_with_its_image_decoder(tmp_path):
    pipe = decoded()
    pipe.image_decoder.set_scheduler(
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    )
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["image_decoder"] == ["showo_hf.models.modeling_diffusion_decoder", "ShowoDiffusionDecoder"]
    loaded = ShowoT2IPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.image_decoder, ShowoDiffusionDecoder)
    assert isinstance(loaded.image_decoder.scheduler, DPMSolverMultistepScheduler)
    torch.testing.assert_close(draw(loaded), expected, rtol=0, atol=1e-6)
    without = ShowoT2IPipeline.from_pretrained(tmp_path, image_decoder=None)
    without.set_progress_bar_config(disable=True)
    assert torch.equal(draw(without), draw(make_pipeline(ShowoT2IPipeline)))
    other = ShowoInpaintPipeline.from_pipe(loaded)
    assert other.image_decoder is loaded.image_decoder


def test_a_saved_pipeline_without_one_loads_without_one(tmp_path):
    pipe = make_pipeline(ShowoT2IPipeline)
    pipe.save_pretrained(tmp_path)
    assert not (tmp_path / "image_decoder").exists()
    loaded = ShowoT2IPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.image_decoder is None
    assert torch.equal(draw(loaded), draw(pipe))


def test_offloading_moves_the_image_decoder_and_changes_nothing():
    pipe = ShowoT2IPipeline(
        tiny.showo("llama", text_ids=PROCESSOR.pad_token_id),
        PROCESSOR,
        make_pipeline(ShowoT2IPipeline).scheduler,
        image_decoder=tiny.image_decoder(residual_scale=0.5),
    )
    pipe.set_progress_bar_config(disable=True)
    expected = draw(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert hasattr(pipe.image_decoder, "_hf_hook") and hasattr(pipe.model, "_hf_hook")
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("prediction_type", ["flow_prediction", "epsilon"])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_an_image_decoder_whose_weights_are_fetched_for_each_layer(tmp_path, prediction_type, place):
    """As in sequential offloading, or from a folder with a `device_map`: the decoder itself has no weights."""
    pipe = decoded(prediction_type=prediction_type)
    expected = draw(pipe)
    if place == "memory":
        accelerate.cpu_offload(pipe.image_decoder, torch.device("cpu"))
    else:
        pipe.image_decoder.save_pretrained(tmp_path / "decoder")
        on_disk = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offloaded"}
        loaded = ShowoDiffusionDecoder.from_pretrained(tmp_path / "decoder", **on_disk).eval()
        pipe.register_modules(image_decoder=loaded)
    assert {weight.device.type for weight in pipe.image_decoder.parameters()} == {"meta"}
    for _ in range(2):  # weights that are mapped from a file may round otherwise
        torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=0 if place == "memory" else 1e-6)


def test_calls_wait_for_each_other_if_the_image_decoder_alone_is_offloaded(monkeypatch):
    pipe, running, most = decoded(), [], []
    accelerate.cpu_offload(pipe.image_decoder, torch.device("cpu"))
    draw(pipe)
    predict = pipe.image_decoder.predict

    def watched(*arguments):
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return predict(*arguments)

    monkeypatch.setattr(pipe.image_decoder, "predict", watched)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: draw(pipe), range(2)))
    assert max(most) == 1


def test_too_many_decoder_steps_are_refused_before_the_work():
    pipe = decoded(prediction_type="epsilon")
    with pytest.raises(ValueError, match="`decoder_steps` must be at most 1,000, got 1001"):
        pipe("owl", decoder_steps=1001, callback_on_step_end=lambda *_: pytest.fail("the work had begun"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [ShowoT2IPipeline, *EDITING_PIPELINES])
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_from_a_gpu_moves_the_image_decoder(kind, way):
    pipe = make_pipeline(kind, tiny.showo("llama", text_ids=PROCESSOR.pad_token_id))
    pipe.register_modules(image_decoder=tiny.image_decoder(residual_scale=0.5))
    getattr(pipe, way)()
    options = {} if kind is ShowoT2IPipeline else {"image": pixels(), **EDIT_ARGUMENTS[kind]}
    found = draw(pipe, **options)
    assert found.isfinite().all()
    assert (found - draw(pipe, **options, decoder_steps=0)).abs().mean() > 0.02
    resting = "cpu" if way == "enable_model_cpu_offload" else "meta"
    assert {weight.device.type for weight in pipe.image_decoder.parameters()} == {resting}


def test_tiles_of_large_images():
    pipe = decoded(num_inference_steps=1)
    whole = draw(pipe, height=2 * SIDE, width=SIDE)
    pipe.image_decoder.enable_tiling()
    tiled = draw(pipe, height=2 * SIDE, width=SIDE)
    assert tiled.shape == whole.shape == (1, 3, 2 * SIDE, SIDE)
    assert (
        0
        < (tiled - whole).abs().mean()
        < (whole - draw(pipe, height=2 * SIDE, width=SIDE, decoder_steps=0)).abs().mean()
    )


def test_masked_tokens_stay_grey():
    """A call that is interrupted leaves tokens masked; there is nothing to decode."""
    pipe = decoded()
    latents = torch.zeros(1, tiny.SIDE, tiny.SIDE, dtype=torch.long)
    latents[:, 0, 0] = pipe.mask_token_id
    found = pipe.decode_latents(latents, "pt", generator(0))
    assert bool((found[..., : tiny.FACTOR, : tiny.FACTOR] == 0.5).all())
    assert not bool((found[..., tiny.FACTOR :, :] == 0.5).any())


def test_reading_takes_a_folder_with_an_image_decoder(tmp_path):
    decoded().save_pretrained(tmp_path)
    pipe = ShowoMMUPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe.image_decoder, ShowoDiffusionDecoder)


@pytest.mark.parametrize(("steps", "message"), [(-1, "at least 0, got -1"), (1.5, "at least 0, got 1.5")])
def test_wrong_steps_are_refused(steps, message):
    with pytest.raises(ValueError, match=f"`decoder_steps` must be an integer of {message}"):
        draw(decoded(), decoder_steps=steps)


def test_steps_need_an_image_decoder():
    with pytest.raises(ValueError, match="`decoder_steps` must be None or 0 for a pipeline without an image decoder"):
        draw(make_pipeline(ShowoT2IPipeline), decoder_steps=4)


def test_a_decoder_of_other_codes_is_refused():
    with pytest.raises(ValueError, match="`image_decoder` and `model` do not fit: `codebook_channels` is 4 and 6"):
        draw(decoded(codebook_channels=4))
