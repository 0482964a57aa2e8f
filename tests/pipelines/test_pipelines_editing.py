"""The behaviour that the inpainting, extending and varying pipelines share."""

from fractions import Fraction

import numpy as np
import pytest
import tiny
import torch
from conversations import PROCESSOR, ForwardCalls, generator, grid, pixels
from image_pipelines import (
    EDIT_ARGUMENTS,
    EDITING_PIPELINES,
    PROMPTS,
    edit,
    encode_image,
    make_pipeline,
    shared_vq_model,
    text_to_image,
)
from PIL import Image

from showo_hf import (
    MaskAndReplaceScheduler,
    MaskGITScheduler,
    RegionalPrompt,
    ShowoExtrapolatePipeline,
    ShowoImagePipelineOutput,
    ShowoImg2ImgPipeline,
    ShowoInpaintPipeline,
    ShowoT2IPipeline,
)


@pytest.fixture(params=EDITING_PIPELINES, ids=lambda kind: kind.__name__)
def kind(request) -> type:
    return request.param


@pytest.fixture
def pipe(kind):
    return make_pipeline(kind)


def crop_to_given_image(kind: type, grids: torch.Tensor) -> torch.Tensor:
    """Crop extended grids to the given image. Return other grids unchanged."""
    if kind is ShowoExtrapolatePipeline:
        return grids[..., : grids.shape[-1] // 6 * 4]
    return grids


# Input images and output types


def test_images_may_be_pil_images_arrays_tensors_paths_or_tokens(pipe, tmp_path):
    pil_image = pixels()
    pil_image.save(tmp_path / "image.png")
    array, image_tokens = np.array(pil_image), encode_image(pil_image, pipe)
    expected = edit(pipe, image=image_tokens)
    images = [pil_image, array, array / 255, torch.tensor(array).movedim(-1, 0), torch.tensor(array)[None] / 255]
    images += [tmp_path / "image.png", str(tmp_path / "image.png"), [pil_image], image_tokens[0], [image_tokens[0]]]
    for image in images:
        assert torch.equal(edit(pipe, image=image), expected), type(image)


def test_known_tokens_stay_unchanged(kind, pipe):
    known = grid()
    before, found = known.clone(), edit(pipe, image=known)
    assert torch.equal(known, before) and found.max() < tiny.CODES
    is_equal = crop_to_given_image(kind, found)[0] == known
    assert not torch.equal(found[0, :4, :4], known) or kind is ShowoExtrapolatePipeline
    if kind is ShowoInpaintPipeline:
        assert is_equal[EDIT_ARGUMENTS[kind]["mask_image"] == 0].all()
    elif kind is ShowoImg2ImgPipeline:
        assert is_equal.sum() >= 16 - round(0.6 * 16)
    else:
        assert found.shape == (1, 4, 6) and is_equal.all()


def test_image_tokens_may_be_those_of_a_codebook_of_vectors(kind):
    pipe, image = make_pipeline(kind, shared_vq_model()), pixels()
    known = encode_image(image, pipe)
    assert len(known.unique()) > 3
    found = edit(pipe, image=image)
    assert torch.equal(found, edit(pipe, image=known))
    assert (crop_to_given_image(kind, found) == known).sum() >= 16 - round(0.6 * 16)
    as_pt = edit(pipe, image=image, output_type="pt")
    torch.testing.assert_close(as_pt, (pipe.image_tokenizer.decode(found).sample.detach() / 2 + 0.5).clamp(0, 1))


def test_output_types_agree(pipe):
    image_tokens = edit(pipe)
    as_pt = edit(pipe, output_type="pt")
    torch.testing.assert_close(
        as_pt, (pipe.image_tokenizer.decode(image_tokens).sample.detach() / 2 + 0.5).clamp(0, 1)
    )
    as_np = edit(pipe, output_type="np")
    np.testing.assert_allclose(as_np, as_pt.movedim(1, -1).numpy(), atol=1e-6)
    (as_pil,) = edit(pipe, output_type="pil")
    assert np.array_equal(np.asarray(as_pil), (as_np[0] * 255).round().astype("uint8"))
    options = {"image": grid(), "num_inference_steps": 4, "output_type": "latent", **EDIT_ARGUMENTS[type(pipe)]}
    output = pipe("a red apple", **options, generator=generator())
    assert isinstance(output, ShowoImagePipelineOutput) and torch.equal(output.images, image_tokens)
    (plain,) = pipe("a red apple", **options, generator=generator(), return_dict=False)
    assert torch.equal(plain, image_tokens)


def test_images_are_resized_to_the_trained_or_requested_size(kind, pipe):
    added = 2 if kind is ShowoExtrapolatePipeline else 0
    options = {"mask_image": torch.ones(2, 3)} if kind is ShowoInpaintPipeline else {}
    wide = pixels(size=(30, 45))  # height, width
    assert edit(pipe, image=wide, **options).shape == (1, 4, 6 + added)
    assert edit(pipe, image=wide, width=24, **options).shape == (1, 4, 6 + added)
    assert edit(pipe, image=wide, height=20, **options).shape == (1, 5, 8 + added)
    assert edit(pipe, image=wide, height=16, width=16, **options).shape == (1, 4, 4 + added)


@pytest.mark.parametrize("image", [pixels(size=(8, 16)), grid(shape=(2, 4))], ids=["pixels", "tokens"])
def test_a_smaller_size_works_and_warns(kind, pipe, caplog, image):
    options = {"height": 8, "width": 16} if isinstance(image, Image.Image) else {}
    if kind is ShowoInpaintPipeline:
        options["mask_image"] = torch.ones(1, 2)
    with caplog.at_level("WARNING"):
        found = edit(pipe, image=image, **options)
    assert found.shape[1:2] == (2,) and found.max() < tiny.CODES
    assert "trained on grids of 4x4 tokens; 2x4 may look worse" in caplog.text


def test_more_steps_than_training_timesteps_are_refused_before_any_work(pipe):
    pipe.scheduler = MaskAndReplaceScheduler(mask_token_id=tiny.CODES, num_train_timesteps=10)
    calls = ForwardCalls(pipe)
    with pytest.raises(
        ValueError, match="`num_inference_steps` must be at most .* MaskAndReplaceScheduler, 10, got 11"
    ):
        edit(pipe, num_inference_steps=11)
    assert calls == []


def test_config_entries_of_another_scheduler_are_ignored(pipe):
    foreign_scheduler = MaskAndReplaceScheduler(mask_token_id=tiny.CODES, num_train_timesteps=3)
    pipe.scheduler = MaskGITScheduler.from_config(foreign_scheduler.config)
    found = edit(pipe, num_inference_steps=4)
    pipe.scheduler = MaskGITScheduler(mask_token_id=tiny.CODES)
    assert torch.equal(found, edit(pipe, num_inference_steps=4))


def test_numbers_may_be_numpy_scalars(kind, pipe):
    options = {"extent": np.int64(8)} if kind is ShowoExtrapolatePipeline else {"strength": np.float32(0.5)}
    plain = {name: value.item() for name, value in options.items()}
    steps, scale = {"num_inference_steps": np.int64(3)}, {"guidance_scale": np.float32(2.5)}
    expected = edit(pipe, num_inference_steps=3, guidance_scale=2.5, **plain)
    assert torch.equal(edit(pipe, **steps, **scale, **options), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"guidance_scale": Fraction(5, 2)}, "`guidance_scale` must be a finite number"),
        ({"num_inference_steps": Fraction(4)}, "`num_inference_steps` must be an integer"),
        ({"prompt": [RegionalPrompt("owl", Fraction(3, 2))]}, "`prompt` must have finite weights"),
        ({"prompt": [RegionalPrompt("owl", True)]}, "`prompt` must have finite weights"),
    ],
)
def test_unsupported_number_types_are_refused_before_any_work(pipe, options, message):
    calls = ForwardCalls(pipe)
    with pytest.raises(ValueError, match=message):
        edit(pipe, **options)
    assert calls == []


def test_the_prompt_and_the_negative_prompt_guide_the_image(pipe):
    plain = edit(pipe, "owl", guidance_scale=4.0)
    assert not torch.equal(plain, edit(pipe, "two hearts", guidance_scale=4.0))
    assert not torch.equal(plain, edit(pipe, "owl", guidance_scale=4.0, negative_prompt="two hearts"))
    unguided = edit(pipe, "owl", guidance_scale=1.0)
    assert torch.equal(unguided, edit(pipe, "owl", negative_prompt="owl", guidance_scale=4.0))
    assert torch.equal(unguided, edit(pipe, "owl", guidance_scale=4.0, guidance_interval=(0.9, 0.95)))


# Batches and random numbers


LEFT = torch.tensor([[1.0, 0.0]] * 2)
COMPOSED = [
    [RegionalPrompt("owl", mask=LEFT), RegionalPrompt("two hearts", 0.5)],
    "a green pear",
    [RegionalPrompt("owl", 2.0)],
]


@pytest.mark.parametrize(
    "prompts, options",
    [
        (PROMPTS, {}),
        (PROMPTS, {"strength": 0.5}),
        (PROMPTS, {"strength": 0.5, "remasking": "random"}),
        (PROMPTS, {"guidance_scale": 1.0}),
        (COMPOSED, {}),
        (COMPOSED, {"strength": 0.5}),
    ],
)
def test_batches_with_one_generator_per_image_equal_single_calls(kind, pipe, prompts, options):
    if kind is ShowoExtrapolatePipeline and "strength" in options:
        options = {"direction": ["up", "right"], "rounds": 2}
    grids, generators = grid(shape=(3, 4, 4)), [generator(number) for number in range(3)]
    together = edit(pipe, prompts, image=grids, generator=generators, **options)
    for number, prompt in enumerate(prompts):
        alone = edit(pipe, prompt, number, image=grids[number], **options)
        assert torch.equal(together[number : number + 1], alone), number


def test_one_image_serves_all_prompts_and_seeds_are_reproducible(pipe):
    assert torch.equal(edit(pipe, PROMPTS), edit(pipe, PROMPTS, image=grid().expand(3, -1, -1)))
    assert not torch.equal(edit(pipe, PROMPTS), edit(pipe, PROMPTS, seed=1))
    torch.manual_seed(3)
    first = edit(pipe, generator=None)
    torch.manual_seed(3)
    assert torch.equal(first, edit(pipe, generator=None))


def test_images_per_prompt_use_the_image_of_their_prompt(pipe):
    grids = grid(shape=(2, 4, 4))
    found = edit(pipe, PROMPTS[:2], image=grids, num_images_per_prompt=2)
    repeated = edit(pipe, [one for one in PROMPTS[:2] for _ in range(2)], image=grids.repeat_interleave(2, 0))
    assert torch.equal(found, repeated)
    as_pt = edit(pipe, PROMPTS[:2], image=[pixels(0), pixels(1)], num_images_per_prompt=2, output_type="pt")
    assert len(as_pt) == 4


# Callbacks


def test_the_callback_sees_each_step_and_can_replace_the_tokens(pipe):
    seen = []

    def record(its_pipe, step, timestep, tensors):
        assert its_pipe is pipe and its_pipe.guidance_scale == 3.0
        seen.append((step, tensors["latents"].clone()))
        return {"latents": tensors["latents"].masked_fill(tensors["latents"] == tiny.CODES, 7)}

    found = edit(pipe, callback_on_step_end=record, guidance_scale=3.0)
    assert [step for step, _ in seen] == list(range(pipe.num_timesteps))
    assert (seen[0][1] == tiny.CODES).any() and not any((latents == tiny.CODES).any() for _, latents in seen[1:])
    assert torch.equal(found, seen[-1][1])
    asked = []
    edit(pipe, callback_on_step_end=lambda *args: asked.append(args[-1]), callback_on_step_end_tensor_inputs=[])
    assert asked and not any(asked)


# Components, devices, dtypes


def test_a_saved_pipeline_loads_as_its_class_and_as_another(kind, pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is kind and torch.equal(edit(loaded), edit(pipe))
    other = ShowoT2IPipeline.from_pretrained(tmp_path)
    assert isinstance(other, ShowoT2IPipeline)
    other.set_progress_bar_config(disable=True)
    grids = other("a red apple", num_inference_steps=4, generator=generator(), output_type="latent").images
    assert torch.equal(grids, text_to_image())


def test_components_rebuild_the_pipeline(kind, pipe):
    assert set(pipe.components) == {"model", "processor", "scheduler", "image_decoder"}
    for again in (kind(**pipe.components), kind.from_pipe(make_pipeline(ShowoT2IPipeline))):
        again.set_progress_bar_config(disable=True)
        assert torch.equal(edit(again), edit(pipe))


def new_model():
    return tiny.showo("llama", text_ids=PROCESSOR.pad_token_id)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_images(kind, dtype):
    half = make_pipeline(kind, new_model()).to(dtype)
    options = {} if kind is ShowoImg2ImgPipeline else {"preserve_pixels": True}
    found = edit(half, image=pixels(), output_type="pt", **options)
    assert found.dtype == torch.float32 and found.isfinite().all() and found.std() > 0


def test_model_offloading_does_not_change_pixels(kind, pipe):
    offloaded = make_pipeline(kind, new_model())
    offloaded.enable_model_cpu_offload(device="cpu")
    for image in (pixels(), grid()):
        assert torch.equal(edit(offloaded, image=image, output_type="pt"), edit(pipe, image=image, output_type="pt"))


@pytest.mark.gpu
def test_offloading_from_a_gpu(kind):
    pipe = make_pipeline(kind, new_model())
    pipe.enable_model_cpu_offload()
    for image in (pixels(), grid()):
        assert edit(pipe, COMPOSED, image=image, output_type="pt").isfinite().all()
        assert pipe.model.device.type == "cpu"


def test_a_model_without_image_tokenizer_edits_token_grids(kind, pipe):
    model = tiny.showo("llama", text_ids=PROCESSOR.pad_token_id, images=False)
    without_tokenizer = make_pipeline(kind, model)
    options = {"extent": 2} if kind is ShowoExtrapolatePipeline else {}  # in tokens, because the pixel size is unknown
    assert edit(without_tokenizer, **options).shape == edit(pipe).shape
    with pytest.raises(ValueError, match="`image` must be a token grid for a model without an image tokenizer"):
        edit(without_tokenizer, image=pixels(), **options)
    with pytest.raises(ValueError, match="`output_type` must be 'latent'"):
        edit(without_tokenizer, output_type="pil", **options)


# Invalid input is refused before any work


@pytest.mark.parametrize(
    "inputs, error, message",
    [
        ({"prompt": None}, TypeError, "`prompt` must be a text or a list of texts, got NoneType"),
        ({"prompt": [[RegionalPrompt("owl")], 3]}, TypeError, "lists of `RegionalPrompt`, got int"),
        ({"prompt": [RegionalPrompt("owl", float("nan"))]}, ValueError, "finite weights, got nan for 'owl'"),
        (
            {"prompt": [RegionalPrompt("owl", mask=torch.ones(3))]},
            ValueError,
            r"`RegionalPrompt.mask` as an array must be \(H, W\)",
        ),
        (
            {"prompt": [RegionalPrompt("owl"), "two hearts"]},
            TypeError,
            r"must hold either `RegionalPrompt` only, .* got \['RegionalPrompt', 'str'\]",
        ),
        ({"negative_prompt": ["a", "b"]}, ValueError, "`negative_prompt` must be one text or one for each of the 1"),
        ({"image": None}, ValueError, "`image` must be one image or one for each of the 1 prompts, got 0"),
        ({"image": [pixels(), pixels()]}, ValueError, "one for each of the 1 prompts, got 2"),
        ({"image": "no such file"}, ValueError, "`image` holds an image that cannot be read"),
        ({"image": 3}, TypeError, "`image` must hold PIL images, arrays, tensors, paths or URLs, got int"),
        ({"image": torch.full((3, 8, 8), 1.5)}, ValueError, r"`image` as floats must be in \[0, 1\]"),
        ({"image": grid(shape=(2, 4, 4))}, ValueError, "`image` must hold 1 grids"),
        ({"image": grid(shape=(16,))}, ValueError, "`image` must be an int64 tensor of shape"),
        ({"image": torch.full((4, 4), tiny.CODES)}, ValueError, "image tokens from 0 to 63, got 64 to 64"),
        ({"image": [grid(), grid(shape=(4, 5))]}, ValueError, "`image` must hold token grids of one size"),
        ({"height": 16}, ValueError, "`height` and `width` must be None for an `image` of tokens"),
        ({"image": pixels(), "height": 15}, ValueError, "`height` must be a positive multiple of 4 pixels, got 15"),
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be an integer of at least 1"),
        ({"num_images_per_prompt": 0}, ValueError, "`num_images_per_prompt` must be an integer of at least 1"),
        ({"guidance_scale": -1.0}, ValueError, "`guidance_scale` must be a finite number"),
        (
            {"guidance_schedule": "steep"},
            ValueError,
            "`guidance_schedule` must be 'constant', 'linear' or 'cosine', got 'steep'",
        ),
        ({"guidance_interval": (0.5, 0.2)}, ValueError, "must be two rising numbers"),
        ({"guidance_interval": 0.5}, ValueError, "`guidance_interval` must be two numbers, got 0.5"),
        ({"temperature": -1.0}, ValueError, "`temperature` must be a finite number"),
        ({"output_type": "jpeg"}, ValueError, "`output_type` must be 'pil', 'np', 'pt' or 'latent', got 'jpeg'"),
        ({"generator": [generator()] * 2}, ValueError, "a list of 1, got a list of 2"),
        ({"callback_on_step_end_tensor_inputs": ["logits"]}, ValueError, r"among \['latents'\], got \['logits'\]"),
    ],
)
def test_wrong_input_is_refused_before_any_work(pipe, inputs, error, message):
    calls = ForwardCalls(pipe)
    with pytest.raises(error, match=message):
        edit(pipe, **({"prompt": "owl"} | inputs))
    calls.handle.remove()
    assert calls == []


@pytest.mark.parametrize("inputs", [{"strength": 1.1}, {"strength": -0.1}, {"strength": "1"}, {"strength": True}])
@pytest.mark.parametrize("kind", [ShowoInpaintPipeline, ShowoImg2ImgPipeline])
def test_a_strength_outside_0_to_1_is_refused(kind, inputs):
    with pytest.raises(ValueError, match="`strength` must be a number from 0 to 1, got"):
        edit(make_pipeline(kind), **inputs)
    with pytest.raises(ValueError, match="`remasking` must be 'uncertain' or 'random', got 'worst'"):
        edit(make_pipeline(kind), remasking="worst")


@pytest.mark.parametrize("kind", [ShowoInpaintPipeline, ShowoExtrapolatePipeline])
def test_preserve_pixels_needs_pixels_as_input_and_output(kind):
    with pytest.raises(ValueError, match="`preserve_pixels` must be False for `output_type='latent'`"):
        edit(make_pipeline(kind), image=pixels(), preserve_pixels=True)
    with pytest.raises(ValueError, match="`preserve_pixels` must be False for an `image` of tokens"):
        edit(make_pipeline(kind), preserve_pixels=True, output_type="pil")


def test_a_scheduler_for_another_codebook_size_is_refused(pipe):
    pipe.scheduler = MaskGITScheduler()
    with pytest.raises(ValueError, match="must be the model's codebook size, 64, got 8192"):
        edit(pipe)


def test_images_with_different_aspect_ratios_need_a_size():
    pipe = make_pipeline(ShowoImg2ImgPipeline)
    images = [pixels(size=(16, 24)), pixels(size=(16, 16))]
    with pytest.raises(ValueError, match=r"images of one aspect ratio .* got sizes \[\(16, 16\), \(16, 24\)\]"):
        edit(pipe, PROMPTS[:2], image=images)
    assert edit(pipe, PROMPTS[:2], image=images, height=16, width=24).shape == (2, 4, 6)


def test_pil_images_are_returned(pipe):
    assert [type(image) for image in edit(pipe, PROMPTS, image=pixels(), output_type="pil")] == [Image.Image] * 3
