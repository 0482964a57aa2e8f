"""The samplers that benchmarks compare, what their images cost, and a plot of quality against steps."""

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.pictures import generate

from showo_hf import ShowoT2IPipeline
from showo_hf.schedulers import SCHEDULERS


#: The measured samplers: a name in `SCHEDULERS` and settings. The model is trained with masks only, so `mask_share` is 1.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "maskgit": ("maskgit", {}),
    "maskgit, temperature 1": ("maskgit", {"temperature": 1.0}),  # Show-o's
    "halton": ("halton", {}),
    "entropy-bound": ("entropy-bound", {}),
    "entropy-bound, 16 nats": ("entropy-bound", {"entropy_bound": 16.0}),
    "remasking": ("remasking", {}),
    "remasking, remdm": ("remasking", {"rule": "remdm"}),
    "mask-and-replace": ("mask-and-replace", {"mask_share": 1.0}),
    "mask-and-replace, purity": ("mask-and-replace", {"mask_share": 1.0, "purity": True}),
}

#: The sampler and steps that the others are compared with, image by image.
REFERENCE = ("maskgit", 16)


def scheduler_of(sampler: str, config: Mapping[str, Any]) -> Any:
    """A scheduler of `SETTINGS`. What these do not set is as in the config of a model's scheduler."""
    name, settings = SETTINGS[sampler]
    return SCHEDULERS[name].from_config(config, **settings)


def file_stem(sampler: str) -> str:
    """The name of a sampler for files: "entropy-bound-16-nats"."""
    return re.sub(r"\W+", "-", sampler)


def steps_alone(unfinished: list[torch.BoolTensor]) -> list[int]:
    """The steps that each image of a batch would take alone, from `unfinished` (batch,) after every step."""
    after = torch.stack(unfinished)  # (steps, batch)
    number = torch.arange(1, len(after) + 1)[:, None]
    return ((number * after).amax(0) + 1).tolist()


def make(
    pipe: ShowoT2IPipeline, prompts: list[str], batch_size: int, seed: int = 0, **options: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """
    Make images (N, 3, H, W) in [-1, 1], as [`generate`] does. Also returns what they cost: "steps_run", the mean steps
    that an image takes alone, "seconds_a_step", the mean seconds of an image and step, and "seconds_decoding", those of an
    image after its last step.
    """
    images, steps = [], []
    seconds, decoding, steps_of_batches = 0.0, 0.0, 0
    for first in range(0, len(prompts), batch_size):
        chunk = prompts[first : first + batch_size]
        unfinished: list[torch.BoolTensor] = []
        times = [time.perf_counter()]  # at the start, and after each step

        def note(its_pipe, step, timestep, tensors, unfinished=unfinished, times=times):
            unfinished.append((tensors["latents"] == its_pipe.mask_token_id).flatten(1).any(1))
            times.append(time.perf_counter())

        images.append(generate(pipe, chunk, seed + first, len(chunk), callback_on_step_end=note, **options))
        decoding += time.perf_counter() - times[-1]
        seconds += times[-1] - times[0]
        steps_of_batches += len(unfinished) * len(chunk)
        steps += steps_alone(unfinished)
    cost = {"seconds_a_step": seconds / steps_of_batches, "seconds_decoding": decoding / len(prompts)}
    return torch.cat(images), cost | {"steps_run": statistics.mean(steps)}


def plot(rows: Sequence[Mapping[str, Any]], file: Path, measure: str, title: str):
    """
    Plot a share against the mean steps, one line a sampler, with one standard error of the reference sampler.

    Args:
        rows: "sampler", "steps_run", "share" and its "error".
        file: the image file.
        measure: what the share is of.
        title: the title.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 4.2), layout="constrained")
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        points = sorted((row for row in rows if row["sampler"] == sampler), key=lambda row: row["steps_run"])
        steps, shares, errors = ([row[name] for row in points] for name in ("steps_run", "share", "error"))
        (line,) = axes.plot(steps, shares, "o-", label=sampler, alpha=0.7)
        if sampler == REFERENCE[0]:
            lower, upper = (np.add(shares, np.multiply(sign, errors)) for sign in (-1, 1))
            label = f"one standard error of {sampler}"
            axes.fill_between(steps, lower, upper, color=line.get_color(), alpha=0.15, linewidth=0, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set(xlabel="mean steps per image", ylabel=measure, title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
