"""The Gradio app: layout and event wiring. The pipelines do the work.

Run `python app.py`. The environment variable `SHOWO_MODEL` selects a model folder or Hub name instead of the embedded
model.
"""

import inspect
import logging
import os
import random
from collections.abc import Callable

import gradio as gr
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from showo_hf import EMBEDDED_MODEL, ShowoMMUPipeline, ShowoT2IPipeline
from showo_hf.pipelines.scheduler_adapter import config_entry
from showo_hf.processing.images import load_image


logger = logging.getLogger(__name__)

# Limits of a public app. Clients can call its API directly, so the limits of the page are not enough.
MAX_PROMPT_LENGTH = 300
MAX_STEPS = 50
MAX_GUIDANCE = 20.0
MAX_TEMPERATURE = 4.0
MAX_IMAGES = 4
MAX_SEED = 2**31 - 1
MAX_WAITING = 20  # requests in the queue
MAX_ANSWER = 64  # text tokens
MAX_FILE_SIZE = "10mb"

EXAMPLES = [
    "a red apple, flat style",
    "a red apple, noto style",
    "a red apple, 3d style",
    "3d emoji of a smiling cat with heart eyes",
    "an owl in noto style",
    "flat picture of a rocket",
]
QUESTIONS = ["what is this?", "is it food?", "what is the main colour?", "in which style is it drawn?"]
FAILED = "The image could not be made. Please try again with other settings."
NOT_ANSWERED = "The question could not be answered. Please try again with another one."


def check_prompt(prompt: str | None, missing: str = "Please write what the image should show.") -> str:
    """Strip the prompt. Raises a `gr.Error` for the user if it is empty or too long."""
    prompt = (prompt or "").strip()
    if not prompt:
        raise gr.Error(missing, print_exception=False)
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise gr.Error(f"Please use at most {MAX_PROMPT_LENGTH} characters.", print_exception=False)
    return prompt


def usual_temperature(pipe: DiffusionPipeline) -> float:
    """The scheduler's own temperature: of the confidences, or of the softmax."""
    return config_entry(pipe.scheduler, "temperature", config_entry(pipe.scheduler, "token_temperature", 1.0))


def takes_temperature(pipe: DiffusionPipeline) -> bool:
    """Whether the scheduler has a temperature. A pipeline refuses one for the schedulers that have none."""
    return "temperature" in inspect.signature(pipe.scheduler.set_timesteps).parameters


def image_maker(pipe: DiffusionPipeline) -> Callable:
    """The event handler that makes images. It maps the inputs to images with captions, and the seed of the first."""

    def make_images(
        prompt: str,
        steps: int,
        guidance: float,
        temperature: float,
        seed: float | None,
        count: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio requires it as a default
    ) -> tuple[list[tuple[Image.Image, str]], int]:
        prompt = check_prompt(prompt)
        steps, count = int(steps), int(count)
        first = random.randint(0, MAX_SEED) if seed is None else int(seed)
        seeds = [first + index for index in range(count)]

        def on_step_end(pipe: DiffusionPipeline, step: int, timestep: object, callback_kwargs: dict) -> dict:
            progress((step + 1, steps), unit="steps")
            return callback_kwargs

        try:
            options = {"temperature": temperature} if takes_temperature(pipe) else {}
            images = pipe(
                prompt,
                num_inference_steps=steps,
                guidance_scale=guidance,
                num_images_per_prompt=count,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                callback_on_step_end=on_step_end,
                **options,
            ).images
        except Exception as error:
            # The details go to the log. The user must not learn anything about this machine.
            logger.exception("an image could not be made")
            raise gr.Error(FAILED, print_exception=False) from error
        return [(image, f"seed {seed}") for image, seed in zip(images, seeds, strict=True)], first

    return make_images


def question_answerer(pipe: DiffusionPipeline) -> Callable:
    """The event handler that answers questions. It maps an image file and a question to the answer."""
    asking = ShowoMMUPipeline(**pipe.components)

    def answer(file: str | None, question: str) -> str:
        question = check_prompt(question, "Please write a question.")
        if not file:
            raise gr.Error("Please choose an image.", print_exception=False)
        try:
            image = load_image(file)
        except ValueError as error:
            raise gr.Error("This file cannot be read as an image.", print_exception=False) from error
        try:
            return asking(image, question, max_new_tokens=MAX_ANSWER).texts[0]
        except Exception as error:
            logger.exception("a question could not be answered")
            raise gr.Error(NOT_ANSWERED, print_exception=False) from error

    return answer


def build_demo(pipe: DiffusionPipeline) -> gr.Blocks:
    """The app for a loaded pipeline; `launch()` starts it. The initial settings are the defaults of the pipeline."""
    usual = {name: parameter.default for name, parameter in inspect.signature(pipe.__call__).parameters.items()}
    with gr.Blocks(title="Show-o", analytics_enabled=False) as demo:
        gr.Markdown("# Show-o\nOne model that makes images from words, and answers questions about images.")
        with gr.Tab("Text to image"), gr.Row():
            with gr.Column():
                prompt = gr.Textbox(
                    label="What to show", placeholder=EXAMPLES[0], max_length=MAX_PROMPT_LENGTH, autofocus=True
                )
                button = gr.Button("Make", variant="primary")
                gr.Examples(EXAMPLES, inputs=prompt, label="Things and styles to try", cache_examples=False)
                with gr.Accordion("Settings", open=False):
                    steps = gr.Slider(1, MAX_STEPS, usual["num_inference_steps"], step=1, precision=0, label="Steps")
                    guidance = gr.Slider(1.0, MAX_GUIDANCE, usual["guidance_scale"], step=0.25, label="Guidance")
                    temperature = gr.Slider(
                        0.0,
                        MAX_TEMPERATURE,
                        usual_temperature(pipe),
                        step=0.1,
                        label="Temperature",
                        visible=takes_temperature(pipe),
                    )
                    count = gr.Slider(1, MAX_IMAGES, value=1, step=1, precision=0, label="Images")
                    seed = gr.Number(None, minimum=0, maximum=MAX_SEED, precision=0, label="Seed (empty: a new one)")
            with gr.Column():
                gallery = gr.Gallery(label="Images", columns=2, format="png", object_fit="contain")
                used_seed = gr.Number(label="Seed of the first image", interactive=False, precision=0)
        with gr.Tab("Questions about an image"), gr.Row():
            with gr.Column():
                # A path, so that only our own reader opens the uploaded file.
                file = gr.File(label="Image", file_types=["image"], type="filepath")
                question = gr.Textbox(label="Question", value=QUESTIONS[0], max_length=MAX_PROMPT_LENGTH)
                ask = gr.Button("Ask", variant="primary")
                gr.Examples(QUESTIONS, inputs=question, label="Questions to try", cache_examples=False)
            answer = gr.Textbox(label="Answer", interactive=False)
        gr.on(
            [ask.click, question.submit],
            question_answerer(pipe),
            inputs=[file, question],
            outputs=answer,
            api_name="ask",
        )
        gr.on(
            [button.click, prompt.submit],
            image_maker(pipe),
            inputs=[prompt, steps, guidance, temperature, seed, count],
            outputs=[gallery, used_seed],
            api_name="generate",
        )
    return demo.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def load_pipeline() -> ShowoT2IPipeline:
    """Load `SHOWO_MODEL`, by default the embedded model, to the accelerator if there is one."""
    pipe = ShowoT2IPipeline.from_pretrained(os.environ.get("SHOWO_MODEL") or EMBEDDED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")


if __name__ == "__main__":
    logging.basicConfig()
    build_demo(load_pipeline()).launch(max_file_size=MAX_FILE_SIZE)
