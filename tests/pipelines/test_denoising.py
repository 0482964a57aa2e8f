"""The denoising loop: its length and call depth, callbacks that change a call, and calls in several threads."""

import inspect
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import image_pipelines
import pytest
import tiny
import torch
from conversations import PROCESSOR, answer, generator, grid, random_chat_pipeline, user
from image_pipelines import EDIT_ARGUMENTS, EDITING_PIPELINES, edit, make_pipeline

from showo_hf import (
    EMBEDDED_MODEL,
    MaskGITScheduler,
    RemaskingScheduler,
    ShowoImg2ImgPipeline,
    ShowoInpaintPipeline,
    ShowoMMUPipeline,
    ShowoT2IPipeline,
)
from showo_hf.pipelines.denoising import denoise


STEPS = 4


def generate(pipe, **kwargs):
    """Call any image pipeline and return its tokens."""
    options = {"num_inference_steps": STEPS, "generator": generator(), "output_type": "latent"} | EDIT_ARGUMENTS.get(
        type(pipe), {}
    )
    if type(pipe) is not ShowoT2IPipeline:
        options["image"] = grid()
    return pipe("owl", **(options | kwargs)).images


@pytest.fixture(params=[ShowoT2IPipeline, *EDITING_PIPELINES])
def pipe(request):
    return make_pipeline(request.param)


# The length and call depth of the loop


def test_the_loop_is_one_function_of_at_most_60_lines():
    assert len(inspect.getsource(denoise).splitlines()) <= 60


@contextmanager
def frame_counts(model):
    """Count the frames of this package between a pipeline's `__call__` and each call of the model's `forward`."""
    counts = []

    def count(model, args):
        frame, names = sys._getframe(), []
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith("showo_hf."):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        counts.append(names.index("__call__"))

    handle = model.register_forward_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


def test_at_most_three_frames_lie_between_call_and_forward(pipe):
    with frame_counts(pipe.model) as counts:
        generate(pipe)
    assert counts and max(counts) <= 3


def test_answers_have_at_most_three_frames_between_call_and_forward():
    pipe = random_chat_pipeline()
    with frame_counts(pipe.model) as counts:
        assert any(part["type"] == "image" for part in answer(pipe).content)
    assert max(counts) <= 3
    pipe = ShowoMMUPipeline(pipe.model, PROCESSOR, pipe.scheduler)
    with frame_counts(pipe.model) as counts:
        pipe(grid(), "what?", max_new_tokens=3)
    assert max(counts) <= 3


def test_check_inputs_takes_keywords_and_reads_no_file(pipe, tmp_path):
    parameters = inspect.signature(pipe.check_inputs).parameters.values()
    assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for one in parameters)
    if type(pipe) is not ShowoT2IPipeline:  # a missing file raises only when it is read
        with pytest.raises(ValueError, match="cannot be read"):
            generate(pipe, image=str(tmp_path / "missing.png"))


# Callbacks


def test_a_callback_can_interrupt_the_call(pipe):
    steps = []

    def stop(its_pipe, step, timestep, tensors):
        steps.append(step)
        its_pipe._interrupt = step == 1
        return {}

    complete = generate(pipe, num_inference_steps=8)  # variations skip the first steps
    stopped = generate(pipe, num_inference_steps=8, callback_on_step_end=stop)
    assert steps == [0, 1] and bool((stopped == tiny.CODES).any())
    known = stopped != tiny.CODES
    assert torch.equal(stopped[known], complete[known])
    assert torch.equal(generate(pipe, num_inference_steps=8), complete)  # the next call is not interrupted


def test_masked_tokens_of_an_interrupted_call_are_grey():
    pipe = make_pipeline(ShowoT2IPipeline)
    seen = []

    def stop(its_pipe, step, timestep, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = True  # through the caller's variable, not through `its_pipe`

    image = generate(pipe, callback_on_step_end=stop, output_type="pt")
    masked = (seen[-1] == tiny.CODES)[:, None].repeat_interleave(tiny.FACTOR, 2).repeat_interleave(tiny.FACTOR, 3)
    assert len(seen) == 1 and bool(masked.any()) and not bool(masked.all())
    grey = (image == 0.5).all(1, keepdim=True)
    assert bool(grey[masked].all()) and not bool(grey[~masked].all())


def test_an_interrupted_call_can_be_continued():
    pipe = make_pipeline(ShowoT2IPipeline)

    def stop(its_pipe, step, timestep, tensors):
        its_pipe._interrupt = True

    half = generate(pipe, callback_on_step_end=stop)
    complete = generate(pipe, latents=half)
    assert torch.equal(complete[half != tiny.CODES], half[half != tiny.CODES])
    assert not bool((complete == tiny.CODES).any())


def record_guidance_scales(pipe, monkeypatch):
    """Record the guidance scale of each step."""
    from showo_hf.pipelines import denoising

    scales, predict = [], denoising.predict_logits

    def recorded(model, sample, context, guidance_scale, wanted=None):
        scales.append((guidance_scale, context.prompts.is_guided))
        return predict(model, sample, context, guidance_scale, wanted)

    monkeypatch.setattr(denoising, "predict_logits", recorded)
    return scales


def test_a_changed_guidance_scale_applies_from_the_next_step(monkeypatch):
    pipe = make_pipeline(ShowoT2IPipeline)
    scales = record_guidance_scales(pipe, monkeypatch)

    def change(its_pipe, step, timestep, tensors):
        assert its_pipe.guidance_scale == [3.0, 1.0, 5.0, 2.0][step]
        its_pipe._guidance_scale = [1.0, 5.0, 2.0, 0.0][step]

    generate(pipe, guidance_scale=3.0, callback_on_step_end=change)
    assert scales == [(3.0, True), (1.0, False), (5.0, True), (2.0, True)]
    scales.clear()

    def guide_late(its_pipe, step, timestep, tensors):
        its_pipe._guidance_scale = 4.0

    late = generate(pipe, guidance_scale=1.0, callback_on_step_end=guide_late)
    assert scales == [(1.0, False), (4.0, True), (4.0, True), (4.0, True)]
    assert torch.equal(late, generate(pipe, guidance_scale=4.0, guidance_interval=(0.3, 1.0)))


def test_a_changed_guidance_scale_must_be_a_number():
    pipe = make_pipeline(ShowoT2IPipeline)

    def change(its_pipe, step, timestep, tensors):
        its_pipe._guidance_scale = "much"

    with pytest.raises(ValueError, match="`guidance_scale` must be a finite number"):
        generate(pipe, callback_on_step_end=change)


def test_the_state_of_a_call_can_be_changed_only_in_its_callback():
    pipe = make_pipeline(ShowoT2IPipeline)
    for change in ({"_interrupt": True}, {"_guidance_scale": 2.0}):
        with pytest.raises(AttributeError, match="in its `callback_on_step_end` only"):
            for name, value in change.items():
                setattr(pipe, name, value)
    generate(pipe)
    with pytest.raises(AttributeError, match="in its `callback_on_step_end` only"):
        pipe._interrupt = True


def test_a_call_inside_a_callback_has_its_own_state():
    pipe, expected, inner = make_pipeline(ShowoT2IPipeline), generate(make_pipeline(ShowoT2IPipeline)), []

    def call_again(its_pipe, step, timestep, tensors):
        if step == 1:
            inner.append(generate(pipe, guidance_scale=7.0))
        assert pipe.guidance_scale == 2.75 and not pipe.interrupt

    assert torch.equal(generate(pipe, callback_on_step_end=call_again), expected)
    assert torch.equal(inner[0], generate(make_pipeline(ShowoT2IPipeline), guidance_scale=7.0))


def test_a_callback_can_interrupt_a_mixed_answer():
    pipe = random_chat_pipeline(soi=50.0)

    def stop(its_pipe, step, timestep, tensors):
        its_pipe._interrupt = True

    found = answer(pipe, callback_on_step_end=stop)
    assert found.finish_reason == "interrupted" and not any(part["type"] == "image" for part in found.content)


# Threads


def run_in_threads(calls, threads=8):
    """Run all calls in threads that start at the same time, and return their results in order."""
    start = threading.Barrier(threads)

    def work(share):
        start.wait()
        return [call() for call in share]

    with ThreadPoolExecutor(threads) as pool:
        shares = list(pool.map(work, [calls[number::threads] for number in range(threads)]))
    return [shares[number % threads][number // threads] for number in range(len(calls))]


@pytest.mark.parametrize("kind", [MaskGITScheduler, pytest.param(RemaskingScheduler, marks=pytest.mark.slow)])
def test_a_pipeline_can_be_shared_by_eight_threads(kind):
    """64 calls with different prompts, steps, sizes and guidance give the same tokens as single calls."""
    pipe = make_pipeline(ShowoT2IPipeline, scheduler=kind(mask_token_id=tiny.CODES))

    def call(number):
        options = {
            "num_inference_steps": 2 + number % 5,
            "guidance_scale": 1.0 + number % 3,
            "temperature": 0.5 * (number % 4),
            "height": tiny.FACTOR * (4 + 2 * (number % 2)),
        }
        return generate_from(pipe, image_pipelines.PROMPTS[number % 3], seed=number, **options)

    def generate_from(its_pipe, prompt, seed, **options):
        return its_pipe(prompt, generator=generator(seed), output_type="latent", **options).images

    expected = [call(number) for number in range(64)]
    found = run_in_threads([lambda number=number: call(number) for number in range(64)])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
def test_pipelines_with_a_shared_scheduler_can_run_in_threads():
    complete = make_pipeline(ShowoT2IPipeline)
    pipes = [complete, ShowoInpaintPipeline.from_pipe(complete), ShowoImg2ImgPipeline.from_pipe(complete)]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    assert all(pipe.scheduler is complete.scheduler for pipe in pipes)

    def call(number):
        pipe = pipes[number % 3]
        return generate(pipe, generator=generator(number), num_inference_steps=2 + number % 4)

    expected = [call(number) for number in range(64)]
    found = run_in_threads([lambda number=number: call(number) for number in range(64)])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_callbacks_in_threads_change_only_their_own_call():
    pipe = make_pipeline(ShowoT2IPipeline)

    def call(number):
        def stop(its_pipe, step, timestep, tensors):
            its_pipe._interrupt = step == number % STEPS
            its_pipe._guidance_scale = 1.0 + number % 3

        return generate(pipe, generator=generator(number), callback_on_step_end=stop)

    expected = [call(number) for number in range(32)]
    found = run_in_threads([lambda number=number: call(number) for number in range(32)])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
def test_answers_can_run_in_threads():
    """Questions and mixed answers also encode and decode text with the shared tokenizer."""
    mixed = random_chat_pipeline()
    asked = ShowoMMUPipeline(mixed.model, PROCESSOR, mixed.scheduler)

    def call(number):
        if number % 2:
            return asked(grid(number), f"what is it {number}?", max_new_tokens=4).texts[0]
        content = answer(mixed, [user(f"an owl {number}")], seed=number).content
        return str([part[part["type"]] for part in content])

    expected = [call(number) for number in range(32)]
    assert run_in_threads([lambda number=number: call(number) for number in range(32)]) == expected


@pytest.mark.slow
def test_the_embedded_model_can_be_shared_by_eight_threads():
    pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    pipe.set_progress_bar_config(disable=True)

    def call(number):
        prompt = ["a red apple to the left of a blue car", "an owl", "a green pear, 3d style"][number % 3]
        return pipe(
            prompt, num_inference_steps=2 + number % 3, generator=generator(number), output_type="latent"
        ).images

    expected = [call(number) for number in range(16)]
    found = run_in_threads([lambda number=number: call(number) for number in range(16)])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_call_does_not_change_the_scheduler(pipe):
    before = dict(vars(pipe.scheduler))
    edit(pipe) if type(pipe) is not ShowoT2IPipeline else generate(pipe)
    assert vars(pipe.scheduler) == before
