"""The work of the app: the same seed gives the same image everywhere, and what the page says of each kind of model."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from conversations import pixels, random_chat_pipeline
from PIL import Image


pytest.importorskip("gradio")

from showo_hf import MaskGITScheduler, ShowoT2IPipeline  # noqa: E402
from showo_hf.app import SpaceOptions, build_demo, build_space  # noqa: E402
from showo_hf.app.ask_tab import NO_MEMORY  # noqa: E402
from showo_hf.app.engine import Answered, Drawn, Engine, Step, Words, collect  # noqa: E402
from showo_hf.app.line import Job  # noqa: E402
from showo_hf.app.settings import DrawSettings  # noqa: E402
from showo_hf.pipelines.call_state import one_at_a_time_if_offloaded  # noqa: E402


#: Draws the image of one seed with the app's engine, beside other work, and with the pipeline alone.
ONE_SEED = """
import hashlib, sys
import torch
from showo_hf.app import load_pipeline
from showo_hf.app.engine import Drawn, Engine, collect
from showo_hf.app.settings import DrawSettings

torch.set_num_threads(int(sys.argv[1]))
pipe = load_pipeline()
settings = DrawSettings("a red apple to the left of a blue car", seed=7, **Engine(pipe).usual)
if sys.argv[2] == "app":
    other = DrawSettings("an owl", steps=2, count=3, seed=1)
    collect(lambda job: Engine(pipe).draw(job, other))
    events = collect(lambda job: Engine(pipe).draw(job, settings, confidence=True))
    (images,) = [event.images for event in events if isinstance(event, Drawn)]
else:
    images = pipe(settings.prompt, generator=torch.Generator().manual_seed(7)).images
print(hashlib.sha256(images[0].tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_a_seed_gives_the_same_image_in_every_process():
    """
    The app beside other work, and the pipeline alone, with one number of threads.

    Another number of threads gives another image: the sums of the matrix products round differently.
    """
    outputs = [
        subprocess.run(
            [sys.executable, "-c", ONE_SEED, threads, kind],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for threads, kind in (("1", "app"), ("1", "pipeline"))
    ]
    assert len(outputs[0]) == 1
    assert outputs[0] == outputs[1]


@pytest.fixture(scope="module")
def clip_pipe():
    """A tiny model that reads images as features."""
    processor = tiny.clip_processor()
    scheduler = MaskGITScheduler(mask_token_id=tiny.CODES)
    return ShowoT2IPipeline(tiny.clip_showo(processor.pad_token_id), processor, scheduler)


def test_a_model_with_features_answers_each_question_by_itself(clip_pipe):
    engine = Engine(clip_pipe)
    events = collect(lambda job: engine.ask(job, [], Image.new("RGB", (16, 16), "red"), "what is this?"))
    assert isinstance(events[-1], Answered) and events[-1].messages == []
    assert all(isinstance(event, Words) for event in events[:-1])


def test_settings_that_a_request_leaves_out_are_the_models_own():
    pipe = tiny.pipeline(tiny.processor())
    assert Engine(pipe).usual == {"steps": 18, "guidance": 2.75}
    pipe.model.config.image_num_inference_steps, pipe.model.config.image_guidance_scale = 7, 1.5
    assert DrawSettings("an owl", **Engine(pipe).usual) == DrawSettings("an owl", steps=7, guidance=1.5)


def test_each_sampler_has_its_own_usual_temperature():
    """4 is much noise on the choice of tokens for MaskGIT. For Halton it would be the temperature of the tokens."""
    pipe = tiny.pipeline(tiny.processor())
    pipe.scheduler = MaskGITScheduler.from_config(pipe.scheduler.config, temperature=4.0)
    engine = Engine(pipe)
    usual = {name: engine.usual_temperature(name) for name in (engine.samplers[0], "remasking", "halton")}
    assert list(usual.values()) == [4.0, 4.0, 1.0]


def texts(pipe) -> list:
    """What the components of the page say."""
    space = build_space(pipe, SpaceOptions(), warm_up=False)
    return [block.value for block in build_demo(space).blocks.values() if isinstance(getattr(block, "value", 0), str)]


def test_the_page_says_whether_answers_have_a_memory(clip_pipe):
    assert NO_MEMORY in texts(clip_pipe)
    processor = tiny.processor()
    assert NO_MEMORY not in texts(tiny.pipeline(processor))


def test_the_images_of_one_request_have_seeds_that_follow():
    pipe = tiny.pipeline(tiny.processor())

    def images(**settings) -> list[bytes]:
        asked = DrawSettings("a cat", steps=3, **settings)
        events = collect(lambda job: Engine(pipe).draw(job, asked, previews=False))
        (drawn,) = [event for event in events if isinstance(event, Drawn)]
        return [image.tobytes() for image in drawn.images]

    together = images(seed=7, count=3)
    assert together == [images(seed=seed)[0] for seed in (7, 8, 9)]
    assert len(set(together)) == 3


def test_all_work_of_an_offloaded_model_waits_for_its_other_calls():
    pipe = tiny.pipeline(tiny.processor())
    engine, passes = Engine(pipe), []
    message = {"role": "user", "content": [{"type": "text", "text": "a cat"}]}
    tokens = torch.zeros((1, *pipe.default_grid), dtype=torch.int64)
    works = [
        lambda job: engine.answer(job, [], message, 0, 1, 8),
        lambda job: engine.confidence(job, tokens, DrawSettings("a cat")),
    ]
    pipe.model.register_forward_pre_hook(lambda *_: passes.append(1))
    pipe.enable_model_cpu_offload(device="cpu")
    with ThreadPoolExecutor(1) as pool:
        for work in works:
            with one_at_a_time_if_offloaded(pipe):
                waiting = pool.submit(collect, work)
                time.sleep(0.2)
                assert not passes
            waiting.result(timeout=60)
            assert passes
            passes.clear()


@pytest.mark.parametrize("kind", ["vary", "confidence"])
def test_a_job_ends_within_a_pass_while_tokens_are_scored(kind):
    pipe = tiny.pipeline(tiny.processor())
    engine, settings = Engine(pipe), DrawSettings("a cat", steps=4)
    events, passes = [], []
    job = Job(events.append, 600)

    def count(*_):
        if kind == "vary" or any(isinstance(one, Drawn) for one in events):
            passes.append(1)
            job.stop()

    pipe.model.register_forward_pre_hook(count)
    if kind == "vary":
        engine.vary(job, settings, pixels(), 0.5, False)
    else:
        engine.draw(job, settings, previews=False, confidence=True)
    assert len(passes) == 2, "the prompt, and the first of the passes that score"
    assert isinstance(events[-1], Drawn) and events[-1].stopped == (kind == "vary")


# Models with a diffusion decoder


@pytest.fixture
def decoded(monkeypatch):
    """A pipeline with an image decoder that counts its decoded batches, in `decoded.batches`."""
    pipe = random_chat_pipeline()
    pipe.register_modules(image_decoder=tiny.image_decoder(residual_scale=0.5))
    pipe.batches, decode = [], pipe.image_decoder.decode

    def counted(codes, *args):
        pipe.batches.append(len(codes))
        return decode(codes, *args)

    monkeypatch.setattr(pipe.image_decoder, "decode", counted)
    return pipe


def test_finished_images_are_decoded_once_and_previews_without_the_image_decoder(decoded):
    settings = DrawSettings("a cat", steps=3, seed=7, count=2)
    engine, picture = Engine(decoded), pixels()
    mask = Image.new("L", picture.size, 255)
    before = torch.get_rng_state()
    for work in (
        lambda job: engine.draw(job, settings),
        lambda job: engine.inpaint(job, settings, picture, mask, 1.0, True),
        lambda job: engine.extend(job, settings, picture, ["right"], 1, True),
        lambda job: engine.vary(job, settings, picture, 1.0, True),
    ):
        events = collect(work)
        assert sum(isinstance(event, Step) and event.image is not None for event in events) > 1
        assert decoded.batches == [2]
        decoded.batches.clear()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_image_of_a_seed_is_the_pipelines_with_its_image_decoder(decoded):
    settings = DrawSettings("a cat", steps=3, seed=7)
    (drawn,) = [one for one in collect(lambda job: Engine(decoded).draw(job, settings)) if isinstance(one, Drawn)]
    pipe = ShowoT2IPipeline(**decoded.components)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": settings.guidance}
    (expected,) = pipe("a cat", generator=torch.Generator().manual_seed(7), **options).images
    assert drawn.images[0].tobytes() == expected.tobytes()


def test_an_answer_decodes_each_of_its_images_once(decoded):
    message = {"role": "user", "content": [{"type": "text", "text": "an owl"}]}
    before = torch.get_rng_state()
    events = collect(lambda job: Engine(decoded).answer(job, [], message, max_images=2, seed=0, max_new_tokens=6))
    images = [event for event in events if isinstance(event, Drawn)]
    assert images and decoded.batches == [1] * len(images)
    assert sum(isinstance(event, Step) and event.image is not None for event in events) > len(images)
    assert torch.equal(torch.get_rng_state(), before)
