"""How fast are answers about images, and answers that contain images? Prints a table of docs/benchmarks.md. Run as

    python benchmarks/understanding_speed.py

The baselines are measured in the same run: `plain_understanding.py`, which works like the original code and gives equal
ids; a matrix-vector product over as many bytes; a forward pass; and separate calls.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import torch
from measuring import can_measure_memory, in_child, median_ratio, paired_seconds, peak_memory_of, print_table
from plain_understanding import plain_answer
from t2i import FULL, GUIDANCE, PROMPT, SMALL, STEPS, Sizes, build_pipeline
from transformers.utils import logging

from showo_hf import ShowoAnyToAnyPipeline, ShowoForCausalLM, ShowoMMUPipeline, ShowoT2IPipeline
from showo_hf.pipelines.denoising import image_input_ids


QUESTIONS = (
    "what is this",
    "is it food",
    "describe the picture",
    "in which style is it drawn",
    "what is the main colour",
    "what kind of thing is it",
    "is there a face in it",
    "how many of them are there",
)
REQUEST = "show me a red apple then a green pear"


@dataclass(frozen=True)
class Lengths:
    """
    Lengths of the answers.

    Args:
        answer: ids of the answer that is compared with the plain loop.
        short: ids of the answer to each of several questions about an image.
        words: text ids before, between and after the two images of a mixed answer.
    """

    answer: int = 100
    short: int = 16
    words: int = 20


@dataclass(frozen=True)
class Measure:
    """A row of the table: a ratio, or None if it cannot be measured here, its details, and the target."""

    name: str
    value: float | None
    details: str
    target: str

    @property
    def measured(self) -> str:
        """The value with its details."""
        if self.value is None:
            return "not measured here"
        return f"{self.value:.2f} ({self.details})"


def compare(name: str, target: str, times: dict[str, list[float]], over: str, under: str, factor=1.0) -> Measure:
    """The ratio of two implementations in paired runs, times `factor`, with the median seconds of both."""
    one, other = (statistics.median(times[way]) for way in (over, under))
    value = factor * median_ratio(times[over], times[under])
    return Measure(name, value, f"{over} {one:.3g} s, {under} {other:.3g} s", target)


def check_equal(what: str, ours, theirs):
    """Raise `RuntimeError` unless two implementations have the same result."""
    if ours != theirs:
        raise RuntimeError(f"{what} differ: {ours!r:.200} and {theirs!r:.200}.")


# One question


def some_image(pipeline: ShowoT2IPipeline) -> torch.LongTensor:
    """Random image tokens (h, w). Their values do not affect the speed."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(pipeline.model.config.codebook_size, pipeline.default_grid, generator=generator)


def prompt_ids(pipeline: ShowoT2IPipeline, *content: str | torch.LongTensor) -> torch.LongTensor:
    """The ids (1, length) of a question, on the device of the model."""
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in content
    ]
    inputs = pipeline.processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return inputs["input_ids"].to(pipeline.device)


def answer(model: ShowoForCausalLM, input_ids: torch.LongTensor, length: int) -> torch.LongTensor:
    """The likeliest `length` ids (1, length) after a prompt, by `generate`."""
    ids = model.generate(input_ids, max_new_tokens=length, do_sample=False, eos_token_id=None)
    return ids[:, input_ids.shape[1] :]


def weights_of_a_token(model: ShowoForCausalLM) -> int:
    """The bytes of the weights that one new id uses: the layers, the last norm and the head."""
    skipped = {id(weight) for weight in model.get_input_embeddings().parameters()}
    skipped -= {
        id(weight) for weight in model.get_output_embeddings().parameters()
    }  # tied weights are used by the head
    weights = [*model.model.parameters(), *model.lm_head.parameters()]
    unique = {id(weight): weight for weight in weights if id(weight) not in skipped}
    return sum(weight.numel() * weight.element_size() for weight in unique.values())


@torch.no_grad()
def answer_measures(pipeline: ShowoT2IPipeline, lengths: Lengths, repeats: int, device: str) -> list[Measure]:
    """The speed of a whole answer, of one new id, and of the prompt."""
    model, ids = pipeline.model, prompt_ids(pipeline, some_image(pipeline), QUESTIONS[0])
    check_equal("Ids", answer(model, ids, lengths.answer).tolist(), plain_answer(model, ids, lengths.answer).tolist())
    width = model.config.hidden_size
    matrix = torch.randn(weights_of_a_token(model) // (width * model.dtype.itemsize), width, device=device)
    vector = torch.randn(width, device=device)

    def products():
        for _ in range(lengths.answer - 1):
            matrix @ vector

    ways: dict[str, Callable[[], object]] = {
        "plain": partial(plain_answer, model, ids, lengths.answer),
        "ours": partial(answer, model, ids, lengths.answer),
        "first id": partial(answer, model, ids, 1),
        "forward": lambda: model(ids, use_cache=False, logits_to_keep=1),
        "products": products,
    }
    times = paired_seconds(ways, repeats, device)
    pairs = zip(times["ours"], times["first id"], strict=True)
    times["other ids"] = [whole - first for whole, first in pairs]
    per_id = 1e3 / (lengths.answer - 1)
    each, product = (per_id * statistics.median(times[name]) for name in ("other ids", "products"))
    return [
        compare(f"{lengths.answer} ids about an image: plain loop / ours", "at least 10", times, "plain", "ours"),
        Measure(
            "ours, a new id / a matrix-vector product over as many bytes",
            median_ratio(times["other ids"], times["products"]),
            f"{each:.3g} ms, {product:.3g} ms, {matrix.nbytes / 1e6:.0f} MB",
            "at most 1.5",
        ),
        compare("prompt / one forward pass", "at most 1.1", times, "first id", "forward"),
    ]


# Several questions


def question_measures(pipeline: ShowoT2IPipeline, lengths: Lengths, repeats: int, device: str) -> list[Measure]:
    """The speed of several questions about one image in one call, relative to one call each."""
    asking, image = ShowoMMUPipeline(**pipeline.components), some_image(pipeline)
    asking.set_progress_bar_config(disable=True)
    options = {"max_new_tokens": lengths.short, "eos_token_id": None}

    def together() -> list[str]:
        return asking(image, list(QUESTIONS), batch_size=len(QUESTIONS), **options).texts

    def one_by_one() -> list[str]:
        return [text for question in QUESTIONS for text in asking(image, question, **options).texts]

    check_equal("Answers", together(), one_by_one())
    times = paired_seconds({"together": together, "one by one": one_by_one}, repeats, device)
    name = f"{len(QUESTIONS)} questions about one image, {lengths.short} ids each: together / one by one"
    return [compare(name, "at most 0.5", times, "together", "one by one")]


# Text and images in one answer


@contextmanager
def says(model: ShowoForCausalLM, script: list[int]) -> Iterator[None]:
    """
    Make the model generate the text ids of `script`. Image tokens are not affected.

    A model with random weights would not start an image. The output head runs as usual.
    """
    next_ids = iter(script)

    def put_first(module: torch.nn.Module, args: tuple, logits: torch.Tensor) -> torch.Tensor:
        logits[..., next(next_ids)] = torch.finfo(logits.dtype).max
        return logits

    hook = model.lm_head.register_forward_hook(put_first)
    try:
        yield
    finally:
        hook.remove()


def mixed_measures(pipeline: ShowoT2IPipeline, lengths: Lengths, repeats: int, device: str) -> list[Measure]:
    """The speed of an answer with two images, relative to separate calls for its parts."""
    mixed, model = ShowoAnyToAnyPipeline(**pipeline.components), pipeline.model
    mixed.set_progress_bar_config(disable=True)
    soi, eot = model.config.soi_token_id, pipeline.processor.eot_token_id
    words, prompt = [1] * lengths.words, prompt_ids(pipeline, REQUEST)
    script = [*words, soi, *words, soi, *words, eot]
    steps = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}

    def ours() -> list[dict]:
        generator = torch.Generator().manual_seed(0)
        with says(model, script):
            return mixed(REQUEST, max_new_tokens=len(script), generator=generator, **steps).content

    def image() -> torch.LongTensor:
        tokens = pipeline(PROMPT, generator=torch.Generator().manual_seed(0), **steps).images
        return image_input_ids(tokens.flatten(1), pipeline.model.config)

    def write(ids: torch.LongTensor, end: int) -> torch.LongTensor:
        return model.generate(ids, max_new_tokens=len(script), do_sample=False, eos_token_id=end)

    def separate() -> torch.LongTensor:
        """The same sequence by separate calls. Each call processes the sequence so far."""
        with says(model, script):
            ids = write(prompt, soi)
            ids = write(torch.cat([ids[:, :-1], image()], 1), soi)
            return write(torch.cat([ids[:, :-1], image()], 1), eot)

    def unrelated() -> torch.LongTensor:
        """The text and two images by calls that are independent of each other."""
        image(), image()
        with says(model, [*words, *words, *words, eot]):
            return write(prompt, eot)

    check_equal("Parts", [part["type"] for part in ours()], ["text", "image", "text", "image", "text"])
    check_equal(
        "Lengths", separate().shape[1] - prompt.shape[1], len(script) + 2 * (model.config.num_image_tokens + 1)
    )
    times = paired_seconds({"one answer": ours, "separate": separate, "unrelated": unrelated}, repeats, device)
    name = f"two images and {3 * lengths.words} words in one answer / "
    return [
        compare(
            f"{name}text and image calls that process the sequence so far",
            "at most 1",
            times,
            "one answer",
            "separate",
        ),
        compare(
            f"{name}independent calls for a text and two images",
            "reported",
            times,
            "one answer",
            "unrelated",
        ),
    ]


# Memory


def memory_measures(device: str, child_options: list[str]) -> list[Measure]:
    """Peak memory relative to the plain loop, each in a new process."""
    names = ("peak memory of an answer / the plain loop's", "the same above the loaded model")
    if not can_measure_memory(device):
        return [Measure(name, None, "", "reported") for name in names]
    theirs, own = (in_child(__file__, "--memory", way, *child_options) for way in ("plain", "ours"))
    values = [(one["peak"], one["peak"] - one["before"]) for one in (own, theirs)]
    return [
        Measure(name, mine / max(1, other), f"{mine / 1e6:.0f} MB, {other / 1e6:.0f} MB", "reported")
        for name, mine, other in zip(names, *values, strict=True)
    ]


def report_memory(way: str, sizes: Sizes, lengths: Lengths, device: str):
    """Print the peak memory of one answer in this process as JSON."""
    pipeline = build_pipeline(sizes, device)
    function = {"plain": plain_answer, "ours": answer}[way]
    ids = prompt_ids(pipeline, some_image(pipeline), QUESTIONS[0])
    print(json.dumps(peak_memory_of(partial(function, pipeline.model, ids, lengths.answer), device)))


# The command


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="device to measure; the targets are for a CPU")
    parser.add_argument("--repeats", type=int, default=3, help="paired runs; the table has their medians")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a quick test; the numbers mean nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--memory", choices=("plain", "ours"), help="only measure the memory of one implementation")
    options = parser.parse_args(arguments)
    sizes, lengths = (SMALL, Lengths(answer=8, short=4, words=3)) if options.small else (FULL, Lengths())
    device = options.device
    logging.set_verbosity_error()
    if options.memory:
        report_memory(options.memory, sizes, lengths, device)
        return
    pipeline = build_pipeline(sizes, device)
    measures = [
        *answer_measures(pipeline, lengths, options.repeats, device),
        *question_measures(pipeline, lengths, options.repeats, device),
        *mixed_measures(pipeline, lengths, options.repeats, device),
        *memory_measures(device, ["--device", device, *["--small"] * options.small]),
    ]
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    if options.json:
        found = {
            "machine": machine,
            "device": device,
            "repeats": options.repeats,
            "measures": list(map(asdict, measures)),
        }
        print(json.dumps(found, indent=2))
        return
    print(f"{machine}; {sizes.image_tokens} tokens per image, {STEPS} steps, guidance, fp32; ", end="")
    print(f"medians of {options.repeats} paired runs\n")
    print_table(
        ("measure", "device", "measured", "target"), [(m.name, device, m.measured, m.target) for m in measures]
    )


if __name__ == "__main__":
    main()
