"""Is the memory that the plan of a training run names what a step takes? Run from the repository root:

    python -m benchmarks.training_memory

Each case is measured in a process of its own on the CPU: the peak of a step with two tasks, forward, backward and AdamW,
less what the process held before the model was made.
"""

import json
import os
import sys

import torch
from benchmarks.measuring import give_back_freed_memory, in_child, peak_memory_of, print_table, status_bytes
from transformers import LlamaConfig, PhiConfig

from showo_hf import ShowoConfig, ShowoForCausalLM
from showo_hf.training.plan import MemoryOptions, ModelSizes, TaskRows, parameter_counts, training_memory


TEXT_IDS, CODES, TEXT = 500, 1024, 32
OFFSET = TEXT_IDS + 10
SPECIAL = {
    f"{name}_token_id": TEXT_IDS + 1 + i for i, name in enumerate("soi eoi sov eov t2i mmu t2v v2v lvg".split())
}
CASES = {
    "phi 256 x 8": {"backbone": "phi", "hidden": 256, "layers": 8, "rows": 12},
    "phi 512 x 4": {"backbone": "phi", "hidden": 512, "layers": 4, "rows": 6},
    "phi 1024 x 2": {"backbone": "phi", "hidden": 1024, "layers": 2, "rows": 6},
    "llama 256 x 4": {"backbone": "llama", "hidden": 256, "layers": 4, "rows": 12},
    "llama 512 x 8": {"backbone": "llama", "hidden": 512, "layers": 8, "rows": 4},
    "llama 1024 x 2, 4 kv heads": {"backbone": "llama", "hidden": 1024, "layers": 2, "rows": 4, "kv_heads": 4},
    "phi 512 x 4, bf16 autocast": {"backbone": "phi", "hidden": 512, "layers": 4, "rows": 6, "autocast": True},
    "llama 512 x 4, bf16 autocast": {"backbone": "llama", "hidden": 512, "layers": 4, "rows": 6, "autocast": True},
    "phi 512 x 6, checkpointing": {"backbone": "phi", "hidden": 512, "layers": 6, "rows": 8, "checkpointing": True},
    "llama 512 x 4, bf16 weights": {"backbone": "llama", "hidden": 512, "layers": 4, "rows": 6, "bf16": True},
}


def config_of(backbone: str, hidden: int, layers: int, kv_heads: int | None = None, **_) -> ShowoConfig:
    """A model with heads of 64 and an MLP of four times the width."""
    sizes = {
        "vocab_size": OFFSET + CODES + 1,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": kv_heads or hidden // 64,
    }
    text_config = PhiConfig(**sizes, qk_layernorm=True) if backbone == "phi" else LlamaConfig(**sizes)
    ids = {"pad_token_id": TEXT_IDS, "bos_token_id": 0, "eos_token_id": 0, **SPECIAL}
    return ShowoConfig(
        text_config=text_config, codebook_size=CODES, image_token_offset=OFFSET, mask_token_id=OFFSET + CODES, **ids
    )


def options_of(autocast: bool = False, checkpointing: bool = False, bf16: bool = False, **_) -> MemoryOptions:
    """The plan's options of a case."""
    return MemoryOptions(
        weight_bytes=2 if bf16 else 4,
        compute_bytes=2 if autocast or bf16 else 4,
        checkpointing=checkpointing,
        device="cpu",
    )


def tasks_of(rows: int, **_) -> list[TaskRows]:
    """Text, and the larger task: text-to-image rows with 256 masked tokens."""
    return [TaskRows("lm", rows // 2, 64, rows // 2 * 63, masked=False), TaskRows("t2i", rows, TEXT + 259, rows * 256)]


def batches_of(config: ShowoConfig, tasks: list[TaskRows]) -> list[dict[str, torch.Tensor]]:
    """Ids and labels of the two tasks."""
    text, image = tasks
    generator = torch.Generator().manual_seed(0)
    text_ids = torch.randint(TEXT_IDS, (text.rows, text.length), generator=generator)
    prompt = torch.randint(TEXT_IDS, (image.rows, TEXT), generator=generator)
    codes = torch.randint(CODES, (image.rows, 256), generator=generator) + config.image_token_offset
    masked = torch.full_like(codes, config.mask_token_id)
    one = torch.ones(image.rows, 1, dtype=torch.long)
    parts = [one * config.t2i_token_id, prompt, one * config.soi_token_id, masked, one * config.eoi_token_id]
    ids = torch.cat(parts, dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, -257:-1] = codes
    return [{"input_ids": text_ids, "labels": text_ids}, {"input_ids": ids, "labels": labels}]


def training_step(case: dict):
    """A function that runs a step of a new model, and the model."""
    torch.manual_seed(0)
    model = ShowoForCausalLM(config_of(**case)).train()
    if case.get("bf16"):
        model.to(torch.bfloat16)
    if case.get("checkpointing"):
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batches = batches_of(model.config, tasks_of(**case))

    def step():
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=case.get("autocast", False)):
                loss = model(**batch, use_cache=False).loss  # a cache would hold keys and values once more
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, model


def measure(case: dict) -> dict[str, int]:
    """Measured and planned bytes of a case. To be run in a process of its own."""
    small = case | {"hidden": 64, "layers": 1, "rows": 2, "kv_heads": None}
    training_step(small)[0]()  # loads the kernels
    give_back_freed_memory()
    before = status_bytes("VmRSS")
    step, model = training_step(case)
    step()  # makes the optimizer's states
    peak = peak_memory_of(step)["peak"]
    counts = parameter_counts(model)
    options = options_of(**case)
    plan = training_memory(ModelSizes.of(model.config), tasks_of(**case), options, counts.total, counts.trained)
    return {"measured": peak - before, "planned": plan.total, **{f"plan_{k}": v for k, v in vars(plan).items()}}


def measure_in_child(name: str) -> dict[str, int]:
    """[`measure`] of the case with this name."""
    return in_child("-m", "benchmarks.training_memory", name)


def main():
    if len(sys.argv) > 1:
        print(json.dumps(measure(CASES[sys.argv[1]])))
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the children: freed memory goes back to the system at once
    rows = []
    for name in CASES:
        result = measure_in_child(name)
        mebibytes = [f"{result[key] / 2**20:.0f}" for key in ("planned", "measured")]
        rows.append([name, *mebibytes, f"{result['planned'] / result['measured']:.3f}"])
    print_table(["case", "planned MiB", "measured MiB", "planned / measured"], rows)


if __name__ == "__main__":
    main()
