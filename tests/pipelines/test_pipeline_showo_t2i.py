"""The public behaviour of the text-to-image pipeline, modelled on diffusers' common pipeline tests."""

import copy
import logging

import accelerate
import numpy as np
import pytest
import tiny
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from PIL import Image

from showo_hf import EntropyBoundScheduler, MaskGITScheduler, ShowoImagePipelineOutput, ShowoT2IPipeline
from showo_hf.schedulers import SCHEDULERS


PROMPTS = ["owl", "a green pear", "two hearts"]  # of different lengths


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample_tokens(pipe, prompt="a red apple", seed=0, **kwargs):
    options = {"num_inference_steps": 4, "generator": generator(seed), "output_type": "latent"}
    return pipe(prompt, **(options | kwargs)).images


class ForwardCalls(list):
    """Records the shape of the input ids at each call of the model."""

    def __init__(self, pipe):
        super().__init__()
        pipe.model.register_forward_pre_hook(self.record, with_kwargs=True)

    def record(self, model, args, kwargs):
        self.append(tuple(kwargs["input_ids"].shape))


# Model calls


def test_prompts_are_encoded_once_and_steps_run_only_the_image(pipe):
    calls = ForwardCalls(pipe)
    sample_tokens(pipe, PROMPTS)
    longest = pipe.processor.text_to_image_prefix(PROMPTS)["input_ids"].shape[1]
    # The first call encodes four texts, including the empty prompt. Each step runs conditional and unconditional rows.
    assert calls == [(4, longest), *[(6, 18)] * 4]


def test_a_guidance_scale_of_one_runs_no_unconditional_rows(pipe):
    calls = ForwardCalls(pipe)
    one = sample_tokens(pipe, PROMPTS, guidance_scale=1.0)
    assert {shape[0] for shape in calls} == {3}
    assert torch.equal(one, sample_tokens(pipe, PROMPTS, guidance_scale=0.0))
    assert torch.equal(one, sample_tokens(pipe, PROMPTS, guidance_scale=1.0, negative_prompt="owl"))


def test_images_per_prompt_share_the_encoded_prompt(pipe):
    calls = ForwardCalls(pipe)
    grids = sample_tokens(pipe, PROMPTS[:2], num_images_per_prompt=3)
    assert calls[0][0] == 3 and {shape[0] for shape in calls[1:]} == {12}
    assert torch.equal(grids, sample_tokens(pipe, [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3))


def test_latents_without_masked_tokens_are_returned_without_any_work(pipe):
    calls = ForwardCalls(pipe)
    latents = torch.randint(tiny.CODES, (1, 4, 4), generator=generator())
    assert torch.equal(sample_tokens(pipe, latents=latents), latents)
    assert calls == []


def test_known_tokens_stay_unchanged(pipe):
    latents = torch.randint(tiny.CODES, (3, 4, 4), generator=generator())
    latents[:, 1:3, 1:3] = tiny.CODES
    before = latents.clone()
    grids = sample_tokens(pipe, PROMPTS, latents=latents)
    assert torch.equal(latents, before)
    assert torch.equal(grids[latents < tiny.CODES], latents[latents < tiny.CODES])
    assert grids.max() < tiny.CODES


# Batches and random numbers


def test_a_generator_makes_tokens_reproducible(pipe):
    assert torch.equal(sample_tokens(pipe, PROMPTS), sample_tokens(pipe, PROMPTS))
    assert not torch.equal(sample_tokens(pipe, PROMPTS), sample_tokens(pipe, PROMPTS, seed=1))


def test_the_global_seed_is_used_without_a_generator(pipe):
    torch.manual_seed(3)
    first = sample_tokens(pipe, generator=None)
    torch.manual_seed(3)
    assert torch.equal(first, sample_tokens(pipe, generator=None))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_batches_with_one_generator_per_image_equal_single_calls(pipe, guidance_scale):
    together = sample_tokens(pipe, PROMPTS, generator=[generator(i) for i in range(3)], guidance_scale=guidance_scale)
    for i, prompt in enumerate(PROMPTS):
        alone = sample_tokens(pipe, prompt, seed=i, guidance_scale=guidance_scale)
        assert torch.equal(together[i : i + 1], alone)


def test_the_prompt_changes_the_tokens(pipe):
    assert not torch.equal(sample_tokens(pipe, "owl"), sample_tokens(pipe, "two hearts"))


def test_a_negative_prompt_replaces_the_empty_prompt(pipe):
    plain = sample_tokens(pipe)
    assert torch.equal(sample_tokens(pipe, negative_prompt=""), plain)
    negative = sample_tokens(pipe, negative_prompt="two hearts")
    assert not torch.equal(negative, plain)
    own = sample_tokens(
        pipe, PROMPTS, negative_prompt=["owl", "", "a red apple"], generator=[generator(i) for i in range(3)]
    )
    assert torch.equal(own[1:2], sample_tokens(pipe, PROMPTS[1], seed=1))
    assert torch.equal(own[2:3], sample_tokens(pipe, PROMPTS[2], seed=2, negative_prompt="a red apple"))
    for_all = sample_tokens(pipe, PROMPTS, negative_prompt="owl")
    assert torch.equal(for_all, sample_tokens(pipe, PROMPTS, negative_prompt=["owl"] * 3))


def test_equal_prompt_and_negative_prompt_disable_guidance(pipe):
    ours = sample_tokens(pipe, "owl", negative_prompt="owl", guidance_scale=5.0)
    assert torch.equal(ours, sample_tokens(pipe, "owl", guidance_scale=1.0))


def test_long_prompts_are_cut_with_a_warning(pipe):
    prompt = " ".join(["a red apple"] * 5)
    cut = pipe.processor.tokenizer.decode(pipe.processor.text_ids(prompt)[:8])
    assert len(pipe.processor.text_ids(cut)) == 8
    with pytest.warns(UserWarning, match="was cut to the 8"):
        ours = sample_tokens(pipe, prompt)
    assert torch.equal(ours, sample_tokens(pipe, cut))


# Outputs


def test_output_types_agree(pipe):
    grid = sample_tokens(pipe)
    assert grid.shape == (1, 4, 4) and grid.dtype == torch.int64
    as_pt = sample_tokens(pipe, output_type="pt")
    assert as_pt.shape == (1, 3, 16, 16) and 0 <= as_pt.min() and as_pt.max() <= 1
    torch.testing.assert_close(as_pt, pipe.image_tokenizer.decode(grid).sample.detach() / 2 + 0.5)
    as_np = sample_tokens(pipe, output_type="np")
    assert isinstance(as_np, np.ndarray)
    np.testing.assert_allclose(as_np, as_pt.movedim(1, -1).numpy(), atol=1e-6)
    as_pil = sample_tokens(pipe, output_type="pil")
    assert [type(image) for image in as_pil] == [Image.Image] and as_pil[0].size == (16, 16)
    assert np.array_equal(np.asarray(as_pil[0]), (as_np[0] * 255).round().astype("uint8"))


def test_return_dict_false_returns_a_tuple(pipe):
    options = {"num_inference_steps": 2, "output_type": "latent"}
    (grid,) = pipe("owl", **options, generator=generator(), return_dict=False)
    output = pipe("owl", **options, generator=generator())
    assert isinstance(output, ShowoImagePipelineOutput)
    assert torch.equal(grid, output.images)


# Sizes


@pytest.mark.parametrize("height, width, grid", [(8, 12, (2, 3)), (8, 32, (2, 8)), (None, 12, (4, 3)), (4, 4, (1, 1))])
def test_a_smaller_size_works_and_warns(pipe, caplog, height, width, grid):
    with caplog.at_level(logging.WARNING):
        found = sample_tokens(pipe, height=height, width=width)
    assert found.shape == (1, *grid) and found.max() < tiny.CODES
    assert f"trained on grids of 4x4 tokens; {grid[0]}x{grid[1]} may look worse" in caplog.text
    pixels = sample_tokens(pipe, height=height, width=width, output_type="pt")
    assert pixels.shape == (1, 3, 4 * grid[0], 4 * grid[1])


@pytest.mark.parametrize("height, width, grid", [(24, 24, (6, 6)), (None, 28, (4, 7)), (32, 16, (8, 4))])
def test_larger_sizes_use_windows_of_the_trained_size(pipe, caplog, height, width, grid):
    calls = ForwardCalls(pipe)
    with caplog.at_level(logging.WARNING):
        found = sample_tokens(pipe, height=height, width=width)
    assert found.shape == (1, *grid) and found.max() < tiny.CODES and "trained on" not in caplog.text
    assert {shape[1] for shape in calls[1:]} == {18}, "soi, 16 tokens, eoi"


def test_the_trained_size_does_not_warn(pipe, caplog):
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample_tokens(pipe), sample_tokens(pipe, height=16, width=16))
    assert "trained on" not in caplog.text


def test_latents_determine_the_size(pipe):
    latents = torch.full((1, 2, 3), tiny.CODES)
    assert torch.equal(sample_tokens(pipe, latents=latents), sample_tokens(pipe, height=8, width=12))
    assert torch.equal(sample_tokens(pipe, latents=latents), sample_tokens(pipe, latents=latents, height=8, width=12))


def test_a_model_without_image_tokenizer_returns_token_grids(processor):
    model = tiny.showo("llama", text_ids=processor.pad_token_id, images=False)
    pipe = ShowoT2IPipeline(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES))
    pipe.set_progress_bar_config(disable=True)
    assert sample_tokens(pipe).shape == (1, 4, 4)
    with pytest.raises(ValueError, match="`output_type` must be 'latent'"):
        pipe("owl")
    with pytest.raises(ValueError, match="`height` and `width` need an image tokenizer"):
        sample_tokens(pipe, height=16)


# Callbacks and progress


def test_the_callback_is_called_after_each_step(pipe):
    seen = []

    def record(its_pipe, step, timestep, tensors):
        assert its_pipe is pipe and pipe.guidance_scale == 3.0 and pipe.num_timesteps == 4
        seen.append((step, int(timestep), tensors["latents"].clone()))

    grid = sample_tokens(pipe, callback_on_step_end=record, guidance_scale=3.0)
    assert [(step, timestep) for step, timestep, _ in seen] == [(0, 3), (1, 2), (2, 1), (3, 0)]
    left = [int((latents == tiny.CODES).sum()) for _, _, latents in seen]
    assert left == sorted(left, reverse=True) and left[0] > left[-1] == 0
    assert torch.equal(seen[-1][2], grid) and seen[0][2].shape == (1, 4, 4)


def test_the_callback_can_replace_the_tokens(pipe):
    def all_seven(its_pipe, step, timestep, tensors):
        return {"latents": torch.full_like(tensors["latents"], 7)}

    assert (sample_tokens(pipe, callback_on_step_end=all_seven) == 7).all()

    def set_first_token(its_pipe, step, timestep, tensors):
        latents = tensors.pop("latents").clone()
        latents[0, 0, 0] = 5
        return {"latents": latents}

    assert sample_tokens(pipe, callback_on_step_end=set_first_token)[0, 0, 0] == 5


def test_the_callback_can_replace_known_tokens(pipe):
    latents = torch.full((1, 4, 4), tiny.CODES)
    latents[0, 3] = 1

    def set_corner(its_pipe, step, timestep, tensors):
        if step == 0:
            changed = tensors["latents"].clone()
            changed[0, 3, 3] = 5
            return {"latents": changed}

    found = sample_tokens(pipe, latents=latents, callback_on_step_end=set_corner)
    assert found[0, 3].tolist() == [1, 1, 1, 5]


@pytest.mark.parametrize("kind", SCHEDULERS.values())
def test_the_callback_can_mask_known_tokens(processor, kind):
    pipe = tiny.pipeline(processor)
    pipe.scheduler = kind(mask_token_id=tiny.CODES)
    latents = torch.full((1, 4, 4), tiny.CODES)
    latents[0, 3] = 1

    def mask_corner(its_pipe, step, timestep, tensors):
        if step == 0:
            changed = tensors["latents"].clone()
            changed[0, 3, 3] = tiny.CODES
            return {"latents": changed}

    found = sample_tokens(pipe, latents=latents, callback_on_step_end=mask_corner)
    assert found[0, 3, :3].tolist() == [1, 1, 1] and found.max() < tiny.CODES


def test_tokens_that_a_callback_masks_in_the_last_needed_step_are_filled(processor):
    """A sampler that would be finished goes on."""
    pipe = tiny.pipeline(processor)
    pipe.scheduler = EntropyBoundScheduler(mask_token_id=tiny.CODES, entropy_bound=10_000.0)
    steps = []

    def mask_corner(its_pipe, step, timestep, tensors):
        steps.append(step)
        if step == 0:
            assert tensors["latents"].max() < tiny.CODES
            changed = tensors["latents"].clone()
            changed[0, 3, 3] = tiny.CODES
            return {"latents": changed}

    assert sample_tokens(pipe, callback_on_step_end=mask_corner).max() < tiny.CODES and steps == [0, 1]


def test_the_callback_gets_only_the_requested_tensors(pipe):
    seen = []
    sample_tokens(
        pipe,
        callback_on_step_end=lambda p, i, t, tensors: seen.append(dict(tensors)),
        callback_on_step_end_tensor_inputs=[],
    )
    assert seen == [{}] * 4


def test_progress_is_shown_on_stderr_unless_disabled(processor, capsys):
    pipe = tiny.pipeline(processor)
    sample_tokens(pipe)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    sample_tokens(pipe)
    assert "4/4" in capsys.readouterr().err


# Components, devices, dtypes


def test_components_rebuild_the_pipeline(pipe):
    assert set(pipe.components) == {"model", "processor", "scheduler", "image_decoder"}
    assert pipe.image_tokenizer is pipe.model.image_tokenizer
    again = ShowoT2IPipeline(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(sample_tokens(again), sample_tokens(pipe))


def test_the_scheduler_can_be_swapped(pipe):
    before = sample_tokens(pipe, num_inference_steps=6)
    pipe.scheduler = MaskGITScheduler.from_config(pipe.scheduler.config, masking_schedule="pow4")
    assert not torch.equal(before, sample_tokens(pipe, num_inference_steps=6))


def test_the_temperature_defaults_to_the_scheduler_s(pipe):
    hot = sample_tokens(pipe, temperature=30.0)
    assert not torch.equal(hot, sample_tokens(pipe))
    pipe.scheduler = MaskGITScheduler.from_config(pipe.scheduler.config, temperature=30.0)
    assert torch.equal(hot, sample_tokens(pipe))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_images(pipe, dtype):
    pipe.to(dtype)
    assert pipe.dtype == dtype
    image = pipe("owl", num_inference_steps=2, generator=generator(), output_type="pt").images
    assert image.dtype == torch.float32 and image.isfinite().all() and image.std() > 0


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_give_the_same_tokens(pipe, implementation):
    expected = sample_tokens(pipe, PROMPTS)
    pipe.model.set_attn_implementation(implementation)
    assert torch.equal(sample_tokens(pipe, PROMPTS), expected)


def test_model_offloading_does_not_change_pixels(processor, pipe):
    expected = sample_tokens(pipe, PROMPTS, output_type="pt")
    offloaded = tiny.pipeline(processor)
    offloaded.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(sample_tokens(offloaded, PROMPTS, output_type="pt"), expected)


def test_decoding_without_denoising_loads_an_offloaded_model(processor):
    """The image tokenizer runs first if no token is masked."""
    pipe, loads = tiny.pipeline(processor), []

    class Hook(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            loads.append(module)
            return args, kwargs

    add_hook_to_module(pipe.model, Hook())
    pipe("owl", latents=torch.zeros(1, 4, 4, dtype=torch.long), output_type="pt")
    assert loads == [pipe.model]


@pytest.mark.gpu
def test_offloading_from_a_gpu(processor):
    pipe = tiny.pipeline(processor)
    pipe.enable_model_cpu_offload()
    image = pipe("owl", num_inference_steps=2, generator=generator(), output_type="pt").images
    assert image.isfinite().all()
    assert pipe.model.device.type == "cpu"


@pytest.mark.parametrize(("kind", "tied"), [("lfq", False), ("lfq", True), ("vq", False)])
def test_sequential_offloading_does_not_change_pixels(processor, kind, tied):
    """
    Set the hooks of `enable_sequential_cpu_offload` directly, because that method fails on a CPU for every model.

    diffusers asks accelerate for the device "cpu:0". Moving a parameter there always copies it to a plain tensor.
    """

    def make() -> ShowoT2IPipeline:
        model = tiny.showo_with(kind, text_ids=processor.pad_token_id, tie_word_embeddings=tied)
        pipe = ShowoT2IPipeline(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    expected, offloaded = sample_tokens(make(), PROMPTS, output_type="pt"), make()
    accelerate.cpu_offload(offloaded.model, torch.device("cpu"))
    assert {weight.device.type for weight in offloaded.model.parameters()} == {"meta"}
    for _ in range(2):
        assert torch.equal(sample_tokens(offloaded, PROMPTS, output_type="pt"), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_sequential_offloading_from_a_gpu(processor, kind):
    model = tiny.showo_with(kind, text_ids=processor.pad_token_id)
    pipe = ShowoT2IPipeline(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES))
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_sequential_cpu_offload()
    image = pipe("owl", num_inference_steps=2, generator=generator(), output_type="pt").images
    assert image.isfinite().all()
    assert {weight.device.type for weight in pipe.model.parameters()} == {"meta"}


# Invalid input is refused before any work


def token_grid(*shape, value=0):
    return torch.full(shape, value)


@pytest.mark.parametrize(
    "inputs, error, message",
    [
        ({"prompt": None}, TypeError, "`prompt` must be a text or a list of texts, got NoneType"),
        ({"prompt": 3}, TypeError, "`prompt` must be a text"),
        ({"prompt": ["owl", 3]}, TypeError, "`prompt` must be a text"),
        ({"prompt": []}, ValueError, "`prompt` must hold at least one text"),
        ({"negative_prompt": 3}, TypeError, "`negative_prompt` must be a text"),
        ({"negative_prompt": ["a", "b"]}, ValueError, "`negative_prompt` must be one text or one for each of the 1"),
        ({"height": 15}, ValueError, "`height` must be a positive multiple of 4 pixels, got 15"),
        ({"width": 0}, ValueError, "`width` must be a positive multiple of 4 pixels, got 0"),
        ({"width": -4}, ValueError, "`width` must be a positive multiple"),
        ({"height": 16.0}, ValueError, "`height` must be a positive multiple"),
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be an integer of at least 1, got 0"),
        ({"num_inference_steps": 2.5}, ValueError, "`num_inference_steps` must be an integer"),
        ({"num_images_per_prompt": 0}, ValueError, "`num_images_per_prompt` must be an integer of at least 1, got 0"),
        ({"guidance_scale": -1.0}, ValueError, "`guidance_scale` must be a finite number that is not negative"),
        ({"guidance_scale": float("nan")}, ValueError, "`guidance_scale`"),
        ({"guidance_scale": float("inf")}, ValueError, "`guidance_scale` must be a finite number"),
        ({"guidance_scale": "5"}, ValueError, "`guidance_scale` must be a finite number"),
        ({"temperature": float("nan")}, ValueError, "`temperature` must be a finite number"),
        ({"temperature": -1.0}, ValueError, "`temperature` must be a finite number that is not negative"),
        ({"output_type": "jpeg"}, ValueError, "`output_type` must be 'pil', 'np', 'pt' or 'latent', got 'jpeg'"),
        ({"generator": []}, ValueError, "`generator` must be one or a list of 1, got a list of 0"),
        ({"generator": [generator(), generator()]}, ValueError, "a list of 1, got a list of 2"),
        ({"generator": 3}, TypeError, "`generator` must be a `torch.Generator` or a list of them, got int"),
        ({"generator": [3]}, TypeError, "`generator` must be a `torch.Generator`"),
        ({"latents": token_grid(1, 16)}, ValueError, "`latents` must be an int64 tensor of shape"),
        ({"latents": torch.zeros(1, 4, 4)}, ValueError, "got torch.float32"),
        ({"latents": [[1]]}, ValueError, "`latents` must be an int64 tensor .* got list"),
        ({"latents": token_grid(2, 4, 4)}, ValueError, "`latents` must hold 1 grids"),
        ({"latents": token_grid(1, 0, 4)}, ValueError, "`latents` must hold 1 grids"),
        (
            {"latents": token_grid(1, 4, 4, value=65)},
            ValueError,
            "image tokens from 0 to 63, or 64 where masked, got 65 to 65",
        ),
        ({"latents": token_grid(1, 4, 4, value=-1)}, ValueError, "image tokens from 0 to 63"),
        ({"latents": token_grid(1, 4, 4), "height": 20}, ValueError, "do not fit `height` and `width`"),
        ({"callback_on_step_end_tensor_inputs": ["logits"]}, ValueError, r"among \['latents'\], got \['logits'\]"),
    ],
)
def test_wrong_input_is_refused_before_any_work(pipe, inputs, error, message):
    calls = ForwardCalls(pipe)
    with pytest.raises(error, match=message):
        pipe(**({"prompt": "owl"} | inputs))
    assert calls == []


def test_a_scheduler_for_another_codebook_size_is_refused(pipe):
    pipe.scheduler = MaskGITScheduler()
    with pytest.raises(ValueError, match="must be the model's codebook size, 64, got 8192"):
        pipe("owl")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, mask_token_id=64)  # as the message says
    assert sample_tokens(pipe).shape == (1, 4, 4)


def test_a_processor_with_another_vocabulary_is_refused(pipe):
    pipe.processor = copy.copy(pipe.processor)
    pipe.processor.image_token_offset += 1
    with pytest.raises(ValueError, match="`processor` and `model` do not fit: `image_token_offset`"):
        pipe("owl")


def test_a_negative_prompt_may_be_a_tuple(pipe):
    assert torch.equal(sample_tokens(pipe, negative_prompt=("hearts",)), sample_tokens(pipe, negative_prompt="hearts"))


def test_logits_cover_only_masked_tokens_and_the_codebook(pipe):
    """Logits have shape (masked tokens of conditional and unconditional rows, codebook size) at each step."""
    shapes = []
    hook = pipe.model.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.logits.shape)))
    num_masked = []

    def record(pipe, step, timestep, tensors):
        num_masked.append(int((tensors["latents"] == 64).sum()))

    pipe("owl", num_inference_steps=4, generator=generator(), output_type="latent", callback_on_step_end=record)
    hook.remove()
    before = [16, *num_masked[:-1]]
    assert shapes[1:] == [(2 * count, 64) for count in before]
