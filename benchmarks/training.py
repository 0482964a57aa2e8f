"""How fast is a training step, and how much memory does it need? Prints a table of docs/benchmarks.md. Run as

    python benchmarks/training.py

It takes some minutes on two cores; `--help` lists the sizes that can be changed. The script measures memory with the
whole batch, and time with half of it, because the plain loop is slow. It measures the baseline in the same run:
`plain_training.py`, which works like the original code and gives equal losses. The batch is what one GPU gets in the
paper's first stage: class names with images, web texts, images with captions.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial

import torch
from measuring import can_measure_memory, in_child, median_ratio, paired_seconds, peak_memory_of, print_table
from plain_training import one_batch, plain_losses
from stored_tokens import waiting
from t2i import FULL, SMALL, Sizes
from transformers import PhiConfig

from showo_hf import ShowoConfig, ShowoForCausalLM
from showo_hf.models.configuration_showo import SPECIAL_TOKEN_NAMES
from showo_hf.models.losses import LOSS_NAMES
from showo_hf.training.losses import LossSums, backward_by_part, step_counts
from showo_hf.training.masking import mask_tokens
from showo_hf.training.rows import Part, label_counts


Rows = tuple[torch.LongTensor, torch.LongTensor]  # ids and labels, (rows, length)

ROWS = {"t2i": 15, "lm": 4, "mmu": 10}
WEIGHTS = {"t2i": 1.0, "lm": 0.1, "mmu": 1.0}
CLASS_NAME = (2, 8)  # text ids, from and to
CAPTION = (16, 64)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Measure:
    """A row of the table: a value, or None if it cannot be measured here, its details, and the target."""

    name: str
    value: float | None
    details: str
    target: str

    @property
    def measured(self) -> str:
        """The value with its details."""
        if self.value is None:
            return "not measured here"
        return f"{self.value:.2g} ({self.details})" if self.value < 0.1 else f"{self.value:.2f} ({self.details})"


# The batch


def build_model(sizes: Sizes, device: str) -> ShowoForCausalLM:
    """A model in training mode with the published architecture and random float32 weights."""
    torch.manual_seed(0)
    # The ids as published, or fewer in a quick test.
    text_ids, codebook_size = (50295, 8192) if sizes is not SMALL else (295, 64)
    special = {f"{name}_token_id": text_ids + 1 + i for i, name in enumerate(SPECIAL_TOKEN_NAMES)}
    offset = text_ids + 1 + len(special)
    text_config = PhiConfig(
        vocab_size=offset + codebook_size + 1,
        hidden_size=sizes.hidden_size,
        intermediate_size=4 * sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        qk_layernorm=True,
        attention_dropout=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    )
    config = ShowoConfig(
        text_config=text_config,
        image_tokenizer_config=None,
        codebook_size=codebook_size,
        num_image_tokens=sizes.image_tokens,
        image_token_offset=offset,
        mask_token_id=offset + codebook_size,
        pad_token_id=text_ids,
        bos_token_id=text_ids - 1,
        eos_token_id=text_ids - 1,
        **special,
    )
    return ShowoForCausalLM(config).to(device).train()


def mixed_batch(config: ShowoConfig, rows: dict[str, int], full_rows: bool, device: str) -> dict[str, Rows]:
    """
    Random rows of the three tasks, as long as the original makes them: class names are padded on the left, captions on
    the right. With `full_rows`, every text is as long as the sequence allows.
    """
    generator = torch.Generator().manual_seed(0)
    sot = config.bos_token_id

    def text(low: int, high: int) -> list[int]:
        length = high if full_rows else int(torch.randint(low, high + 1, (), generator=generator))
        return torch.randint(sot, (length,), generator=generator).tolist()

    def image() -> torch.LongTensor:
        return torch.randint(config.codebook_size, (1, config.num_image_tokens), generator=generator)

    width = config.max_text_length + 1  # of the text before an image, with the task token
    parts = {name: [] for name in LOSS_NAMES}
    for _ in range(rows["t2i"]):
        tokens = image() + config.image_token_offset
        noised, masked = mask_tokens(tokens, config.mask_token_id, generator)
        prompt = text(*((1, width - 3) if full_rows else CLASS_NAME))
        prompt = [config.t2i_token_id, sot, *prompt, sot]
        before = [*[config.pad_token_id] * (width - len(prompt)), *prompt, config.soi_token_id]
        labels = torch.where(masked, tokens, -100)[0].tolist()
        parts["t2i"].append(
            (before + noised[0].tolist() + [config.eoi_token_id], [-100] * len(before) + labels + [-100])
        )
    length = width + config.num_image_tokens + 2
    for _ in range(rows["lm"]):
        row = [sot, *text(length - 2, length - 2), sot]
        parts["lm"].append((row, row))
    for _ in range(rows["mmu"]):
        before = [config.mmu_token_id, config.soi_token_id, *(image() + config.image_token_offset)[0].tolist()]
        before += [config.eoi_token_id, sot]
        longest = length - len(before) - 1
        words = text(1, longest) if full_rows else text(*(min(end, longest) for end in CAPTION))
        answer = [*words, sot]
        pads = length - len(before) - len(answer)
        parts["mmu"].append(
            (
                before + answer + [config.pad_token_id] * pads,
                [-100] * len(before) + answer + [-100] * pads,
            )
        )
    return {
        name: (
            torch.tensor([ids for ids, _ in made], device=device),
            torch.tensor([row for _, row in made], device=device),
        )
        for name, made in parts.items()
        if made
    }


def part_of(task: str, ids: torch.LongTensor, labels: torch.LongTensor, config: ShowoConfig) -> Part:
    """The part that the trainer makes of these rows. It has no columns that are pads in every row."""
    used = (ids != config.pad_token_id).any(0)
    ids, labels = ids[:, used], labels[:, used]
    keys = [str(number) for number in range(len(ids))]
    return Part(task, keys, input_ids=ids, labels=labels, counts=label_counts(ids, labels, config))


# The steps


class Step:
    """A model with its optimizer and a batch, and one training step on them: "plain" or "ours"."""

    def __init__(self, way: str, sizes: Sizes, dtype: torch.dtype, rows: dict[str, int], full_rows: bool, device: str):
        self.model = build_model(sizes, device)
        self.dtype, self.device = dtype, device
        self.run = {"plain": self.plain, "ours": self.ours}[way]
        fused = {"ours": True, "plain": None}[way]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01, fused=fused)
        self.use(rows, full_rows)

    def use(self, rows: dict[str, int], full_rows: bool):
        """Take another batch for the next steps."""
        config = self.model.config
        parts = mixed_batch(self.model.config, rows, full_rows, self.device)
        self.rows = {name: len(ids) for name, (ids, _) in parts.items()}
        self.parts = {name: part_of(name, *rows, config) for name, rows in parts.items()}
        self.batch = one_batch(parts, config.pad_token_id)

    def autocast(self):
        """The context of the forward passes."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device, self.dtype)

    def plain(self) -> dict[str, float]:
        """The mean losses of a step of the plain loop."""
        with self.autocast():
            losses = plain_losses(self.model, *self.batch, self.rows)
            loss = sum(WEIGHTS[name] * one for name, one in losses.items())
        loss.backward()
        self.update()
        return {name: one.item() for name, one in losses.items()}

    def ours(self) -> dict[str, float]:
        """The mean losses of a step task by task."""
        sums = LossSums()
        backward_by_part(
            self.model,
            self.parts,
            step_counts([self.parts]),
            WEIGHTS,
            torch.device(self.device),
            sums,
            forward_context=self.autocast,
        )
        self.update()
        return {name: mean for (_, name), mean in sums.means().items()}

    def update(self):
        """An update of the weights."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def operations(self) -> float:
        """
        The floating-point operations of the matrix products in [`Step.ours`]: of the layers at every position, of the
        attention between every two positions, of the head at every label. The backward pass has twice the forward's.
        """
        hidden, layers = self.model.config.hidden_size, len(self.model.model.layers)
        matrices = sum(weight.numel() for weight in self.model.model.layers.parameters() if weight.ndim == 2)
        head = self.model.lm_head.weight.numel() * sum(step_counts([self.parts]).values())
        lengths = [part.input_ids.shape for part in self.parts.values()]
        linear = matrices * sum(rows * length for rows, length in lengths)
        attention = 2 * hidden * layers * sum(rows * length**2 for rows, length in lengths)
        return 3 * 2.0 * (linear + attention + head)


def check_equal_losses(one: dict[str, float], other: dict[str, float], tolerance: float):
    """Raise `RuntimeError` unless two implementations have the same losses."""
    if one.keys() != other.keys() or any(abs(one[name] - other[name]) > tolerance * one[name] for name in one):
        raise RuntimeError(f"Losses differ: {one} and {other}.")


def matrix_rate(sizes: Sizes, dtype: torch.dtype, device: str) -> Callable[[], float]:
    """Measures operations per second of a large matrix product in `dtype`, as in the widest layer."""
    rows, inner, columns = (max(8, size * sizes.hidden_size) for size in (4, 1, 4))
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
    a @ b

    def rate() -> float:
        start = time.perf_counter()
        a @ b
        if device != "cpu":
            torch.accelerator.synchronize(device)
        return 2 * rows * inner * columns / (time.perf_counter() - start)

    return rate


# The measures


def speed_measures(name: str, options: argparse.Namespace, build: Callable[[str], Step]) -> list[Measure]:
    """The time of a step, and the share of the machine's matrix rate."""
    steps = {"plain": build("plain"), "ours": build("ours")}
    sizes = SMALL if options.small else FULL
    rate = matrix_rate(sizes, DTYPES[name], options.device)
    check_equal_losses(*(step.run() for step in steps.values()), 1e-4 if name == "fp32" else 0.02)
    rates: list[float] = []

    def products():
        rates.append(max(rate() for _ in range(10)))

    ways = {**{way: step.run for way, step in steps.items()}, "products": products}
    times = paired_seconds(ways, options.repeats, options.device, warm_up=False)
    plain, ours = (statistics.median(times[way]) for way in ("plain", "ours"))
    operations, best = steps["ours"].operations(), max(rates)
    return [
        Measure(
            f"a step in {name}, time: plain loop / ours",
            median_ratio(times["plain"], times["ours"]),
            f"{plain:.3g} s, {ours:.3g} s",
            "at least 1.35",
        ),
        Measure(
            f"a step in {name}, ours: share of the rate of a large matrix product",
            operations / ours / best,
            f"{operations / 1e12:.2g} TFLOP, {operations / ours / 1e9:.0f} and {best / 1e9:.0f} GFLOP/s",
            "at least 0.6",
        ),
    ]


def memory_measures(name: str, options: argparse.Namespace, child_options: list[str]) -> list[Measure]:
    """Peak memory of a step relative to the plain loop, each in a new process."""
    names = (
        f"a step in {name}, peak memory above weights and optimizer state: ours / plain loop",
        f"a step in {name}, peak memory of the whole process: ours / plain loop",
    )
    targets = ("at most 0.33", "reported")
    if not can_measure_memory(options.device):
        return [Measure(one, None, "", target) for one, target in zip(names, targets, strict=True)]
    found = [in_child(__file__, "--memory", way, "--dtype", name, *child_options) for way in ("ours", "plain")]
    values = [[one["peak"] - one["before"] for one in found], [one["peak"] for one in found]]
    return [
        Measure(one, mine / max(1, other), f"{mine / 1e9:.3g} GB, {other / 1e9:.3g} GB", target)
        for one, (mine, other), target in zip(names, values, targets, strict=True)
    ]


def report_memory(step: Step, rows: dict[str, int], full_rows: bool):
    """Print the peak memory of a step in this process as JSON. A first step, of few rows, makes the optimizer's state."""
    step.run()
    step.use(rows, full_rows)
    print(json.dumps(peak_memory_of(step.run, step.device)))


def waiting_measure(options: argparse.Namespace) -> Measure:
    """The share of a run's time that the trainer waits for data. The run is one of the real trainer on the CPU."""
    waited, total = waiting(options.waiting_steps, 2 if options.small else 8)
    return Measure(
        "stored tokens: share of the time waiting for data",
        waited / total,
        f"{waited:.3g} s of {total:.3g} s in {options.waiting_steps} steps of the embedded model",
        "at most 0.02",
    )


# The command


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="cpu", help="device to measure; the targets are for a CPU")
    add("--dtype", choices=[*DTYPES, "both"], default="both", help="dtype of the products; weights are float32")
    add(
        "--repeats", type=int, default=2, help="paired steps after the first; the table has their medians (default: 2)"
    )
    add(
        "--rows-scale",
        type=float,
        default=0.5,
        help="scales the rows of each task for the time, at least one each (default: 0.5)",
    )
    add(
        "--memory-rows-scale",
        type=float,
        default=1.0,
        help="the same for the memory (default: 1.0, the paper's rows)",
    )
    add(
        "--waiting-steps",
        type=int,
        default=20,
        help="steps of the run on stored tokens; 0 leaves it out (default: 20)",
    )
    add("--full-rows", action="store_true", help="texts that fill their rows, so that nothing is padded")
    add("--small", action="store_true", help="tiny sizes, for a quick test; the numbers mean nothing")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add("--memory", choices=("plain", "ours"), help="only measure the memory of one implementation")
    return parser.parse_args(arguments)


def scaled(rows: dict[str, int], scale: float) -> dict[str, int]:
    """The rows of each task times `scale`, at least one."""
    return {name: max(1, round(count * scale)) for name, count in rows.items()}


def main(arguments: list[str] | None = None):
    options = parse(arguments)
    sizes, device = SMALL if options.small else FULL, options.device

    def build(way: str, dtype: str, scale: float) -> Step:
        return Step(way, sizes, DTYPES[dtype], scaled(ROWS, scale), options.full_rows, device)

    if options.memory:
        step = build(options.memory, options.dtype, 0.0)
        report_memory(step, scaled(ROWS, options.memory_rows_scale), options.full_rows)
        return
    child_options = ["--device", device, "--memory-rows-scale", str(options.memory_rows_scale)]
    child_options += ["--small"] * options.small + ["--full-rows"] * options.full_rows
    names = list(DTYPES) if options.dtype == "both" else [options.dtype]
    # First, while this process holds no model: the plain loop needs most of the machine's memory.
    memory = {name: memory_measures(name, options, child_options) for name in names}
    measures = []
    for name in names:
        measures += speed_measures(name, options, partial(build, dtype=name, scale=options.rows_scale))
        measures += memory[name]
    if options.waiting_steps:
        measures.append(waiting_measure(options))
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    rows, memory_rows = (scaled(ROWS, scale) for scale in (options.rows_scale, options.memory_rows_scale))
    if options.json:
        found = {
            "machine": machine,
            "device": device,
            "repeats": options.repeats,
            "rows": rows,
            "memory_rows": memory_rows,
            "full_rows": options.full_rows,
            "measures": list(map(asdict, measures)),
        }
        print(json.dumps(found, indent=2))
        return
    listed, memory_listed = (
        " + ".join(f"{count} {name}" for name, count in one.items()) for one in (rows, memory_rows)
    )
    print(f"{machine}; hidden {sizes.hidden_size}, {sizes.layers} layers; rows: {listed} for the time, ", end="")
    print(f"{memory_listed} for the memory; medians of {options.repeats} paired steps\n")
    print_table(
        ("measure", "device", "measured", "target"), [(m.name, device, m.measured, m.target) for m in measures]
    )


if __name__ == "__main__":
    main()
