"""Calls keep their state to themselves: offloading, callbacks, defaults, and what is refused before the model runs."""

import inspect
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from conversations import OPTIONS, random_chat_pipeline
from transformers import GenerationConfig

from showo_hf import (
    HaltonScheduler,
    MaskAndReplaceScheduler,
    MaskGITScheduler,
    RemaskingScheduler,
    ShowoAnyToAnyPipeline,
    ShowoConfig,
    ShowoExtrapolatePipeline,
    ShowoImg2ImgPipeline,
    ShowoInpaintPipeline,
    ShowoMMUPipeline,
    ShowoT2IPipeline,
)
from showo_hf.pipelines.call_state import SamplingParams


IMAGE_PIPELINES = (ShowoT2IPipeline, ShowoInpaintPipeline, ShowoImg2ImgPipeline, ShowoExtrapolatePipeline)
PROCESSOR = tiny.processor()
GRID = torch.arange(tiny.SIDE**2).view(tiny.SIDE, tiny.SIDE)


def make(kind=ShowoT2IPipeline, scheduler=None):
    model = tiny.showo("llama", text_ids=PROCESSOR.pad_token_id)
    pipe = kind(model, PROCESSOR, MaskGITScheduler(mask_token_id=tiny.CODES) if scheduler is None else scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, seed=0, **kwargs):
    options = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
    return pipe("owl", **(options | kwargs)).images


def count_calls(pipe) -> list:
    calls = []
    pipe.model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


# Offloading


def test_threads_may_share_an_offloaded_pipeline():
    pipe = make()
    expected = [generate(pipe, seed) for seed in range(12)]
    pipe.enable_model_cpu_offload(device="cpu")
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda seed: generate(pipe, seed), range(12)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_call_waits_while_another_one_sets_the_hooks_anew():
    pipe, ran = make(), []
    pipe.enable_model_cpu_offload(device="cpu")
    enable = pipe.enable_model_cpu_offload

    def enable_slowly(*args, **kwargs):
        pipe.remove_all_hooks()
        second = pool.submit(lambda: ran.append(generate(pipe)))
        time.sleep(0.3)
        assert not ran and not second.done()
        enable(*args, **kwargs)

    with ThreadPoolExecutor(1) as pool:
        pipe.enable_model_cpu_offload = enable_slowly
        try:
            generate(pipe)
        finally:
            pipe.enable_model_cpu_offload = enable
    assert len(ran) == 1


def test_a_call_does_not_wait_for_an_offloaded_pipeline_with_another_model():
    offloaded, other = make(), make()
    offloaded.enable_model_cpu_offload(device="cpu")

    def draw_the_other(pipe, step, timestep, tensors):
        pool.submit(generate, other).result(timeout=60)
        return tensors

    with ThreadPoolExecutor(1) as pool:
        generate(offloaded, callback_on_step_end=draw_the_other)


def test_a_turn_of_a_conversation_waits_for_a_call_too():
    pipe, ran = random_chat_pipeline(), []
    pipe.enable_model_cpu_offload(device="cpu")
    enable, session = pipe.enable_model_cpu_offload, pipe.start()

    def enable_slowly(*args, **kwargs):
        pipe.enable_model_cpu_offload = enable
        pipe.remove_all_hooks()
        second = pool.submit(lambda: ran.append(session.send("an owl", **OPTIONS)))
        time.sleep(0.3)
        assert not ran and not second.done()
        enable(*args, **kwargs)

    with ThreadPoolExecutor(1) as pool:
        pipe.enable_model_cpu_offload = enable_slowly
        pipe("an owl", **OPTIONS)
    assert len(ran) == 1


def test_understanding_frees_an_offloaded_model(monkeypatch):
    pipe, freed = make(ShowoMMUPipeline), []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(1))
    pipe(GRID, "what?", max_new_tokens=2)
    pipe.score(GRID, "what?", ["owl"])
    assert freed == [1, 1]


def test_a_pipeline_is_freed_with_its_last_reference():
    pipe = make()
    generate(pipe, callback_on_step_end=lambda *_: {})
    alive = weakref.ref(pipe)
    del pipe
    assert alive() is None


# Callbacks


@pytest.mark.parametrize("kind", [MaskGITScheduler, HaltonScheduler, RemaskingScheduler, MaskAndReplaceScheduler])
def test_tokens_that_a_callback_sets_stay(kind):
    def set_first_row(pipe, step, timestep, tensors):
        latents = tensors["latents"].clone()
        if step == 1:
            latents[:, 0] = 5
        return {"latents": latents}

    found = generate(make(scheduler=kind(mask_token_id=tiny.CODES)), callback_on_step_end=set_first_row)
    assert bool((found[:, 0] == 5).all()) and not bool((found == 5).all())


def test_a_callback_must_be_callable():
    pipe = make()
    calls = count_calls(pipe)
    with pytest.raises(TypeError, match="`callback_on_step_end` must be callable or None, got 'print'"):
        generate(pipe, callback_on_step_end="print")
    assert calls == []


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ("stop", TypeError, "`callback_on_step_end` must return a dict or None, got str"),
        (
            {"latents": torch.zeros(1, 4, 4)},
            ValueError,
            "int64 of shape \\(1, 4, 4\\), got torch.float32 \\(1, 4, 4\\)",
        ),
        ({"latents": torch.zeros(1, 3, 4, dtype=torch.int64)}, ValueError, "got torch.int64 \\(1, 3, 4\\)"),
        ({"latents": None}, ValueError, "`callback_on_step_end` must return `latents` as int64"),
    ],
)
def test_what_a_callback_returns_is_checked(returned, error, message):
    with pytest.raises(error, match=message):
        generate(make(), callback_on_step_end=lambda *_: returned)


@pytest.mark.parametrize("wrong", [-1, tiny.CODES + 1])
@pytest.mark.parametrize("in_place", [False, True])
def test_tokens_out_of_range_that_a_callback_sets_are_refused_at_once(wrong, in_place):
    steps = []

    def change(pipe, step, timestep, tensors):
        steps.append(step)
        latents = tensors["latents"] if in_place else tensors["latents"].clone()
        latents[0, 0, 0] = wrong
        return None if in_place else {"latents": latents}

    with pytest.raises(RuntimeError, match=f"from 0 to {tiny.CODES - 1}, or to {tiny.CODES} where masked, got "):
        generate(make(), callback_on_step_end=change)
    assert steps == [0]


@pytest.mark.gpu
def test_tokens_that_a_callback_gives_on_the_cpu_are_moved():
    pipe = make().to("cuda")
    expected = generate(pipe, callback_on_step_end=lambda *_: {})
    found = generate(pipe, callback_on_step_end=lambda *given: {"latents": given[-1]["latents"].cpu()})
    assert found.device.type == "cuda" and torch.equal(found, expected)


def test_an_image_that_is_complete_when_its_answer_is_stopped_is_kept():
    def stop_after_last_step(its_pipe, step, timestep, tensors):
        its_pipe._interrupt = step == 1

    answer = random_chat_pipeline(soi=50.0)(
        "owl", num_inference_steps=2, output_type="latent", callback_on_step_end=stop_after_last_step
    )
    assert answer.finish_reason == "interrupted"
    assert bool((answer.content[-1]["image"] < tiny.CODES).all()) and len(answer.content) == 1


# Arguments


@pytest.mark.parametrize("kind", [*IMAGE_PIPELINES, ShowoAnyToAnyPipeline])
def test_all_pipelines_have_the_same_defaults(kind):
    parameters = inspect.signature(kind.__call__).parameters
    for name, parameter in inspect.signature(SamplingParams).parameters.items():
        if name != "begin_index" and name in parameters:
            of_the_model = name in ("num_inference_steps", "guidance_scale")
            assert parameters[name].default == (None if of_the_model else parameter.default), name


def test_checking_reads_no_file():
    arguments = dict.fromkeys(inspect.signature(ShowoInpaintPipeline.check_inputs).parameters)
    del arguments["self"]
    arguments |= {
        "prompt": "owl",
        "image": "missing.png",
        "mask_image": "missing.png",
        "strength": 1.0,
        "remasking": "random",
        "preserve_pixels": False,
        "num_images_per_prompt": 1,
        "output_type": "pil",
        "params": SamplingParams(18, 2.75),
    }
    make(ShowoInpaintPipeline).check_inputs(**arguments)
    make(ShowoMMUPipeline).check_inputs(images=["missing.png", "http://localhost:1/a.png"], prompts="a", batch_size=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0, "do_sample": True}, ValueError, "`temperature` must be above 0, got 0"),
        ({"temperature": -1.0, "do_sample": True}, ValueError, "`temperature` must be a finite number"),
        ({"top_k": -3}, ValueError, "`top_k` must be an integer of at least 1, got -3"),
        ({"top_p": 2.0}, ValueError, "`top_p` must be above 0 and at most 1"),
        ({"logits_processor": []}, TypeError, "\\['logits_processor'\\] cannot be passed to `generate`"),
        ({"num_return_sequences": 2, "do_sample": True}, ValueError, "`num_return_sequences` must be 1"),
        ({"num_beams": 2, "do_sample": True}, ValueError, "`num_beams` must be 1 with `do_sample=True`, got 2"),
        (
            {"generation_config": GenerationConfig(num_beams=3), "do_sample": True},
            ValueError,
            "`num_beams` must be 1 with `do_sample=True`, got 3",
        ),
        (
            {"return_dict_in_generate": True},
            TypeError,
            "\\['return_dict_in_generate'\\] cannot be passed to `generate`",
        ),
    ],
)
def test_text_sampling_is_checked_before_the_model_runs(options, error, message):
    pipe = make(ShowoMMUPipeline)
    calls = count_calls(pipe)
    with pytest.raises(error, match=message):
        pipe(GRID, "what?", **options)
    assert calls == []


def test_a_generation_config_counts_like_its_arguments():
    pipe = make(ShowoMMUPipeline)
    expected = pipe(GRID, "what?", max_new_tokens=4, num_beams=2).texts
    config = GenerationConfig(num_beams=2, return_dict_in_generate=True)
    assert pipe(GRID, "what?", max_new_tokens=4, generation_config=config).texts == expected


def test_a_stream_names_arguments_that_it_does_not_have():
    with pytest.raises(TypeError, match="An answer has no argument \\['return_dict'\\]; its arguments are"):
        make(ShowoAnyToAnyPipeline).stream("owl", return_dict=True)


def test_hub_options_also_count_when_a_checkpoint_cannot_be_loaded(monkeypatch):
    seen = {}

    def get_config_dict(name, **kwargs):
        seen.update(kwargs, name=name)
        raise OSError("no such repository")

    monkeypatch.setattr(ShowoConfig, "get_config_dict", get_config_dict)
    with pytest.raises(OSError):
        ShowoT2IPipeline.from_pretrained("nobody/nothing", local_files_only=True, revision="v1")
    assert seen == {"name": "nobody/nothing", "local_files_only": True, "revision": "v1"}
