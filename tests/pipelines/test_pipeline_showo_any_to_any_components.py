"""The components of the any-to-any pipeline: other schedulers, saving, dtypes, devices and offloading."""

import accelerate
import pytest
import tiny
import torch
from conversations import (
    OPTIONS,
    PROCESSOR,
    answer,
    generator,
    grid,
    make_chat_pipeline,
    pixels,
    random_chat_pipeline,
    same_parts,
    user,
)
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from showo_hf import ImageStep, MaskGITScheduler, ShowoAnyToAnyPipeline, ShowoT2IPipeline
from showo_hf.schedulers import TokenSchedulerOutput


@pytest.fixture
def pipe() -> ShowoAnyToAnyPipeline:
    return random_chat_pipeline()


class RowByRow(SchedulerMixin, ConfigMixin):
    """A test scheduler that unmasks one row of the grid per step with the most likely tokens."""

    @register_to_config
    def __init__(self, mask_token_id: int = 64):
        self.timesteps = None

    def set_timesteps(self, num_inference_steps, device=None, grid_size=None):
        self.grid_size, self.timesteps = grid_size, torch.arange(num_inference_steps).flip(0)

    def step(self, model_output, timestep, sample, generator=None):
        num_rows_known = len(self.timesteps) - int(timestep)
        known = torch.arange(sample.shape[1], device=sample.device) < num_rows_known * self.grid_size[1]
        guess = torch.where(sample == self.config.mask_token_id, model_output.argmax(-1), sample)
        sample = torch.where(known, guess, self.config.mask_token_id)
        return TokenSchedulerOutput(sample, guess, bool(known.all()))


def test_the_scheduler_can_be_swapped(pipe):
    before = answer(pipe)
    pipe.scheduler = RowByRow(tiny.CODES)
    events = list(pipe.stream("an owl", generator=generator(), **OPTIONS | {"num_inference_steps": 9}))
    steps = [event for event in events if isinstance(event, ImageStep)]
    assert [step.step for step in steps] == [0, 1, 2, 3] * 2  # finished before the ninth step
    assert [int((step.tokens == tiny.CODES).sum()) for step in steps] == [12, 8, 4, 0] * 2
    with pytest.raises(ValueError, match="`temperature` is not an option of RowByRow, got 2.0"):
        answer(pipe, temperature=2.0)
    with pytest.raises(RuntimeError, match="tokens from .* to 64 after its last step"):
        answer(pipe, num_inference_steps=2)
    pipe.scheduler = MaskGITScheduler(mask_token_id=tiny.CODES, masking_schedule="pow4")
    assert not same_parts(answer(pipe, num_inference_steps=6).content, before.content)


def test_text_to_image_and_any_to_any_pipelines_load_the_same_folder(pipe, tmp_path):
    expected = answer(pipe).content
    ShowoT2IPipeline(**pipe.components).save_pretrained(tmp_path / "images")
    loaded = ShowoAnyToAnyPipeline.from_pretrained(tmp_path / "images")
    loaded.set_progress_bar_config(disable=True)
    assert same_parts(answer(loaded).content, expected)
    loaded.save_pretrained(tmp_path / "both")
    images = ShowoT2IPipeline.from_pretrained(tmp_path / "both")
    again = ShowoAnyToAnyPipeline.from_pretrained(tmp_path / "both")
    for one in (images, again):
        one.set_progress_bar_config(disable=True)
    assert same_parts(answer(again).content, expected)
    options = {"num_inference_steps": 2, "output_type": "latent"}
    grids = [p("owl", generator=generator(), **options).images for p in (images, ShowoT2IPipeline(**pipe.components))]
    assert grids[0].shape == (1, 4, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_images(pipe, dtype):
    pipe.to(dtype)
    output = answer(pipe, [user(pixels(), "an owl")], output_type="pt")
    images = [part["image"] for part in output.content if part["type"] == "image"]
    assert images and all(image.dtype == torch.float32 and image.isfinite().all() for image in images)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_give_the_same_answer(pipe, implementation):
    messages = [user(grid(), grid(1), "an owl")]
    expected = answer(pipe, messages)
    pipe.model.set_attn_implementation(implementation)
    assert same_parts(answer(pipe, messages).content, expected.content)


def test_model_offloading_does_not_change_answers(pipe):
    messages = [user(pixels(), "an owl")]  # the image tokenizer runs first
    expected = answer(pipe, messages).content
    offloaded = random_chat_pipeline()
    offloaded.enable_model_cpu_offload(device="cpu")
    session = offloaded.start()
    for _ in range(2):
        assert same_parts(answer(offloaded, messages).content, expected)
    assert same_parts(session.send(messages[0], generator=generator(), **OPTIONS).content, expected)
    session.send("two hearts", **OPTIONS)


def test_sequential_offloading_does_not_change_answers(pipe):
    messages = [user(pixels(), "an owl")]
    expected = answer(pipe, messages, output_type="pt").content
    offloaded = random_chat_pipeline()
    accelerate.cpu_offload(offloaded.model, torch.device("cpu"))
    for _ in range(2):
        found = answer(offloaded, messages, output_type="pt").content
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(found, expected, strict=True) if "image" in a)
        assert [part.get("text") for part in found] == [part.get("text") for part in expected]


def vq_chat_pipeline() -> ShowoAnyToAnyPipeline:
    """[`random_chat_pipeline`] with an image tokenizer with a codebook of vectors."""
    plain = random_chat_pipeline().model
    options = {"lm_head_bias": True, "text_options": {"max_position_embeddings": 512}}
    model = tiny.showo_with("vq", "phi", text_ids=PROCESSOR.pad_token_id, **options)
    own = {name: weight for name, weight in plain.state_dict().items() if not name.startswith("image_tokenizer")}
    assert not model.load_state_dict(own, strict=False).unexpected_keys
    return make_chat_pipeline(model)


def test_answers_with_a_codebook_of_vectors():
    pipe, offloaded = vq_chat_pipeline(), vq_chat_pipeline()
    values = torch.tensor(list(pixels().tobytes())).view(1, 16, 16, 3).movedim(-1, 1) / 127.5 - 1
    tokens = pipe.model.encode_images(values)[0]
    found = answer(pipe, [user(pixels(), "an owl")]).content
    assert len(tokens.unique()) > 3 and same_parts(found, answer(pipe, [user(tokens, "an owl")]).content)
    grids = [part["image"] for part in found if part["type"] == "image"]
    accelerate.cpu_offload(offloaded.model, torch.device("cpu"))
    images = answer(offloaded, [user(pixels(), "an owl")], output_type="pt").content
    decoded = [part["image"] for part in images if part["type"] == "image"]
    assert grids and len(decoded) == len(grids)
    for image, one in zip(decoded, grids, strict=True):
        torch.testing.assert_close(image, pipe.model.decode_images(one[None])[0] / 2 + 0.5)


@pytest.mark.gpu
def test_answers_on_a_gpu_equal_answers_on_a_cpu(pipe):
    messages = [user(pixels(), "an owl")]
    expected = answer(pipe, messages)
    pipe.to("cuda")
    assert same_parts(answer(pipe, messages).content, expected.content)
    offloaded = random_chat_pipeline()
    offloaded.enable_model_cpu_offload()
    session = offloaded.start()
    assert same_parts(session.send(messages[0], generator=generator(), **OPTIONS).content, expected.content)
    session.send("two hearts", **OPTIONS)
    assert offloaded.model.device.type == "cpu"
