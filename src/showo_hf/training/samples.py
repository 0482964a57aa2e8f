"""Samples of a training run: images of fixed prompts and answers to fixed questions, made as the run goes."""

import importlib
import json
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils import parametrize
from transformers import TrainerCallback

from showo_hf.pipelines import ShowoMMUPipeline, ShowoT2IPipeline

from ..processing.images import load_image
from .bound import bound_guess, masked_guess


#: Trackers with the interface of wandb: `log`, and a class `Image`.
IMAGE_TRACKERS = ("trackio", "wandb")


@dataclass
class Samples:
    """
    What a run showed at one step.

    Args:
        step: the step.
        images: pairs of a prompt and the file of its image.
        answers: the image file, the question and the answer.
    """

    step: int
    images: list[tuple[str, Path]] = field(default_factory=list)
    answers: list[tuple[str, str, str]] = field(default_factory=list)


class LogSamples(TrainerCallback):
    """
    Makes samples every `sample_steps` and after the last step, with the averaged weights if there are any.

    The same noise is used at every step, so that only the weights differ. All processes make the samples, because the
    weights may be spread over them; the first one writes them.

    Args:
        pipe: the pipeline that is trained.
        folder: the folder of the samples: `step-N-K.png`, and `step-N.json` with prompts and answers.
        prompts: prompts of the images.
        questions: pairs of an image file and a question.
        sample_steps: steps between samples; by default only after the last step.
        guidance_scale: guidance; by default the pipeline's.
        seed: seeds the noise.
        writer: a `SummaryWriter` of tensorboard.
        trackers: names of further trackers, such as "wandb".

    Raises:
        ValueError: if an image file cannot be read.
    """

    def __init__(
        self,
        pipe: ShowoT2IPipeline,
        folder: Path,
        prompts: list[str],
        questions: list[list[str]],
        sample_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        writer: Any = None,
        trackers: tuple[str, ...] = (),
    ):
        self.pipe, self.folder, self.prompts = pipe, folder, prompts
        self.questions = [(file, load_image(file, "questions"), question) for file, question in questions]
        self.sample_steps, self.guidance_scale, self.seed, self.writer = sample_steps, guidance_scale, seed, writer
        self.trackers = tuple(name for name in trackers if name in IMAGE_TRACKERS)
        self.last: Samples | None = None
        self.trainer: Any = None

    def on_step_end(self, args, state, control, **kwargs):
        if not (self.prompts or self.questions):
            return
        due = self.sample_steps is not None and state.global_step % self.sample_steps == 0
        if due or state.global_step >= state.max_steps:
            self.make(state.global_step, self.trainer.averaged_weights(), write=state.is_world_process_zero)

    @torch.no_grad()
    def make(self, step: int, weights: AbstractContextManager, write: bool = True, report: bool = True) -> Samples:
        """Make the samples with the weights of a context, and write and report them."""
        model = self.pipe.model
        was_training = model.training
        model.eval()
        try:
            with weights, parametrize.cached():  # embeddings that are computed change no more here
                images, answers = self.draw(), self.answer()
        finally:
            model.train(was_training)
        samples = Samples(step, answers=answers)
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
            for number, (prompt, image) in enumerate(zip(self.prompts, images, strict=True)):
                file = self.folder / f"step-{step}-{number}.png"
                image.save(file)
                samples.images.append((prompt, file))
            text = {"step": step, "prompts": self.prompts, "answers": answers}
            (self.folder / f"step-{step}.json").write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
            if report:
                self.report(step, images, answers)
        self.last = samples
        return samples

    def make_of_result(self, step: int, write: bool = True):
        """
        Make the samples of the result, which has the weights of a step, unless the last ones are of this step.

        They are not reported: the trackers have ended with the training, and may have them from an earlier run.
        """
        if (self.prompts or self.questions) and (self.last is None or self.last.step != step):
            self.make(step, nullcontext(), write, report=False)

    def draw(self) -> list[Image.Image]:
        """An image of each prompt."""
        if not self.prompts:
            return []
        guidance = {} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}
        generators = [torch.Generator().manual_seed(self.seed + number) for number in range(len(self.prompts))]
        self.pipe.set_progress_bar_config(disable=True)
        if self.pipe.image_decoder is not None:  # the Trainer moves the model alone
            self.pipe.image_decoder.to(self.pipe.model.device)
        return self.pipe(self.prompts, generator=generators, **guidance).images

    def answer(self) -> list[tuple[str, str, str]]:
        """The answer to each question."""
        if not self.questions:
            return []
        pipe = ShowoMMUPipeline(self.pipe.model, self.pipe.processor, self.pipe.scheduler)
        texts = pipe(
            [image for _, image, _ in self.questions],
            [question for _, _, question in self.questions],
            max_new_tokens=64,
        ).texts
        return [(Path(f).name, question, text) for (f, _, question), text in zip(self.questions, texts, strict=True)]

    def report(self, step: int, images: list[Image.Image], answers: list[tuple[str, str, str]]):
        """Send the samples to tensorboard and to other trackers."""
        if self.writer is not None:
            for prompt, image in zip(self.prompts, images, strict=True):
                self.writer.add_image(f"samples/{prompt[:60]}", np.asarray(image), step, dataformats="HWC")
            for file, question, text in answers:
                self.writer.add_text(f"answers/{file}: {question[:60]}", text, step)
        for name in self.trackers:
            tracker = importlib.import_module(name)
            shown = [
                tracker.Image(np.asarray(image), caption=p) for p, image in zip(self.prompts, images, strict=True)
            ]
            told = {f"answers/{file}: {question}": text for file, question, text in answers}
            # As transformers logs: with `step`, wandb would drop the row, because it counts each row as a step.
            tracker.log({**({"samples": shown} if shown else {}), **told, "train/global_step": step})


def blind_guesses(objective: str, pipe: ShowoT2IPipeline) -> dict[str, float]:
    """
    The losses of a uniform guess, in nats, by their names in the log.

    Image tokens are guessed from the codebook, text from the text ids.
    """
    image, text = masked_guess(pipe.processor.codebook_size), math.log(pipe.processor.pad_token_id)
    return {
        "loss_t2i": bound_guess(pipe.scheduler) if objective == "mask_and_replace" else image,
        "loss_lm": text,
        "loss_mmu": text,
        "loss_mixed_t2i": image,
        "loss_mixed_lm": text,
        "loss_mixed_mmu": text,
    }
