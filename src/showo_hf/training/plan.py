"""The plan of a training run by arithmetic: parameters, tokens of a step, floating-point operations, memory per device.

The memory is what the trainer's step takes: each task's rows have their own forward and backward pass, gradients of the
tasks add up, and a fused AdamW updates the weights. Nothing is cached for generation (`use_cache=False`).
`benchmarks/training_memory.py` holds it against measured steps. The count of saved tensors follows transformers' Phi and
Llama blocks with sdpa attention. Other blocks with a gated MLP (Mistral, Qwen, Gemma) are counted as Llama's, all others
as Phi's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..models.configuration_showo import ShowoConfig
from ..models.losses import CHUNK_LOGITS
from ..utils.validation import check_count
from .step_time import StepTime


FLOAT32 = 4  # bytes
STRATEGIES = ("none", "ddp", "fsdp", "tp")


# Parameters


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters. `parts` maps each top-level part of the model to its total and trained numbers."""

    total: int
    trained: int
    parts: dict[str, tuple[int, int]]

    @property
    def frozen(self) -> int:
        """Parameters without a gradient."""
        return self.total - self.trained


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count the parameters of a model by part: `embedding`, `layers`, `lm_head`, `image_tokenizer` and so on. Each once."""
    parts: dict[str, tuple[int, int]] = {}
    for name, weight in model.named_parameters():
        top, _, rest = name.partition(".")
        part = top if top != "model" else "embedding" if "embed" in rest.split(".")[0] else "layers"
        total, trained = parts.get(part, (0, 0))
        parts[part] = (total + weight.numel(), trained + weight.numel() * weight.requires_grad)
    return ParameterCounts(sum(t for t, _ in parts.values()), sum(t for _, t in parts.values()), parts)


# What is trained


@dataclass(frozen=True)
class ModelSizes:
    """
    The sizes of a backbone that memory and operations depend on.

    Args:
        block: "parallel" (Phi: one LayerNorm, attention and a plain MLP side by side) or "gated" (Llama: two RMSNorms,
            a gated MLP).
        qk_norm: "layer" (LayerNorm), "rms" (RMSNorm) or "none".
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    block: str
    qk_norm: str
    tied: bool

    @classmethod
    def of(cls, config: ShowoConfig) -> "ModelSizes":
        """The sizes of a Show-o model with this config."""
        text: Any = config.text_config
        heads = text.num_attention_heads
        is_gated = getattr(text, "hidden_act", None) in ("silu", "swish") or text.model_type.startswith("gemma")
        own_norm = bool(getattr(text, "qk_layernorm", False)) or config.qk_layernorm
        has_rms = text.model_type.startswith(("qwen3", "gemma3", "olmo2"))
        return cls(
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            intermediate=text.intermediate_size,
            vocab=text.vocab_size,
            block="gated" if is_gated else "parallel",
            qk_norm="rms" if has_rms else "layer" if own_norm else "none",
            tied=config.tie_word_embeddings,
        )

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Parameters of the matrices of one layer."""
        mlp = (3 if self.block == "gated" else 2) * self.hidden * self.intermediate
        return 2 * self.hidden * (self.query_width + self.key_width) + mlp

    @property
    def head(self) -> int:
        """Parameters of the head's matrix, and of the embedding."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of all matrices, without norms and biases, which are less than a thousandth."""
        return self.layers * self.layer_matrices + (1 if self.tied else 2) * self.head


@dataclass(frozen=True)
class TaskRows:
    """
    The rows of one task in a step on one device.

    Args:
        name: "t2i", "lm", "mmu" or "mixed".
        rows, length: batch size, and ids of a row with its pads.
        labelled: positions with a label, in all rows.
        masked: whether sdpa gets a mask. It needs none for text without pads.
    """

    name: str
    rows: int
    length: int
    labelled: int
    masked: bool = True

    @property
    def tokens(self) -> int:
        """Ids in all rows."""
        return self.rows * self.length


def published_rows(
    t2i: int, lm: int, mmu: int, num_image_tokens: int = 256, max_text_length: int = 128
) -> list[TaskRows]:
    """
    The rows of a published stage, on one device, at the paper's lengths.

    A text-to-image row is labelled where its image is masked: with the cosine schedule from 0, 2 / pi of the tokens on
    average, and here all of them, for the largest step. Text and answers fill their rows.
    """
    length = max_text_length + num_image_tokens + 3
    return [
        TaskRows("t2i", t2i, length, t2i * num_image_tokens),
        TaskRows("lm", lm, length, lm * length, masked=False),
        TaskRows("mmu", mmu, length, mmu * max_text_length),
    ]


def tokens_per_step(tasks: Sequence[TaskRows], accumulation: int = 1, ranks: int = 1) -> int:
    """Ids of one optimizer step, pads included. `ranks` are the devices that get rows of their own."""
    return sum(task.tokens for task in tasks) * accumulation * ranks


def flops_per_step(
    sizes: ModelSizes, tasks: Sequence[TaskRows], accumulation: int = 1, checkpointing: bool = False
) -> int:
    """
    Floating-point operations of one optimizer step on one device, forward and backward.

    Each matrix parameter costs 6 per token (2 forward, 4 backward), the head's only at labelled positions; the two
    products of attention cost 12 * length * width per token and layer. With checkpointing, layers run forward twice.
    """
    passes = 8 if checkpointing else 6
    total = 0
    for task in tasks:
        attention = 2 * task.length * sizes.query_width
        total += passes * task.tokens * sizes.layers * (sizes.layer_matrices + attention)
        total += 6 * task.labelled * sizes.head
    return total * accumulation


# Memory


@dataclass(frozen=True)
class MemoryPlan:
    """
    Bytes on one device at the peak of a step.

    Args:
        weights: the weights, with their low-precision copies under autocast, and what sharding gathers.
        gradients: the gradients, with the buffers of their reduction.
        optimizer, ema: states of the optimizer, and the moving average of the weights.
        activations: tensors that the forward pass keeps for the backward pass, of the largest task.
        loss: what the loss keeps for the backward pass: the gradient of the head's matrix.
        working: what the loss holds while it is computed, with the logits of a chunk, or what the backward pass of one
            layer needs beyond `loss`.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    loss: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class MemoryOptions:
    """
    How a run trains.

    Args:
        weight_bytes: of a weight: 4 for float32, 2 for bfloat16. Gradients have the same dtype.
        compute_bytes: of an activation: 2 under bf16 autocast, with weights of 4.
        optimizer_states: numbers for each trained parameter, in the weights' dtype as torch's optimizers keep them: 2
            for AdamW, 1 for momentum, 0 for plain SGD. The average if parameters differ, as with Muon.
        ema: whether a float32 moving average of the trained weights is kept.
        checkpointing: whether layers recompute their activations in the backward pass.
        strategy: "none", "ddp", "fsdp" (FSDP2, everything sharded, bf16 gathered under autocast) or "tp".
        ranks: devices of the strategy's group.
        device: "cuda" or "cpu". Autocast and attention keep other tensors on a CPU.
    """

    weight_bytes: int = 4
    compute_bytes: int = 2
    optimizer_states: float = 2
    ema: bool = False
    checkpointing: bool = False
    strategy: str = "none"
    ranks: int = 1
    device: str = "cuda"

    def __post_init__(self):
        check_count("ranks", self.ranks)
        if self.strategy not in STRATEGIES:
            raise ValueError(f"`strategy` must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}.")
        if self.strategy == "none" and self.ranks > 1:
            raise ValueError(f"`ranks` must be 1 without a strategy, got {self.ranks}.")
        for name in ("weight_bytes", "compute_bytes"):
            if getattr(self, name) not in (2, 4):
                raise ValueError(f"`{name}` must be 2 or 4, got {getattr(self, name)!r}.")
        if self.compute_bytes > self.weight_bytes:
            raise ValueError(f"`compute_bytes` must be at most `weight_bytes`, got {self.compute_bytes}.")

    @property
    def autocast(self) -> bool:
        """Whether matrices are multiplied in a smaller dtype than the weights have."""
        return self.compute_bytes < self.weight_bytes

    @property
    def shards(self) -> int:
        """Devices among which weights, gradients and optimizer states are split entirely."""
        return self.ranks if self.strategy == "fsdp" else 1


def training_memory(
    sizes: ModelSizes,
    tasks: Sequence[TaskRows],
    options: MemoryOptions,
    total: int | None = None,
    trained: int | None = None,
) -> MemoryPlan:
    """
    Memory of one device at the peak of a training step.

    Args:
        total, trained: numbers of parameters, see [`parameter_counts`]. By default all matrices of `sizes`, all trained.
            Adapters keep the activations of full fine-tuning here, which is slightly too many.

    Raises:
        ValueError: if there is no task.
    """
    if not tasks:
        raise ValueError("`tasks` must hold at least one task, got none.")
    total = sizes.parameters if total is None else total
    trained = total if trained is None else trained
    task = max(tasks, key=lambda each: sum(step_memory(sizes, each, options)))
    activations, loss, working = step_memory(sizes, task, options)
    kept = weights_kept(sizes, options, total)
    trained_here = weights_kept(sizes, options, trained)
    return MemoryPlan(
        weights=kept * options.weight_bytes + weight_copies(sizes, options),
        gradients=trained_here * options.weight_bytes + gradient_buffers(sizes, options, trained),
        optimizer=round(trained_here * options.optimizer_states) * options.weight_bytes,
        ema=trained_here * FLOAT32 if options.ema else 0,
        activations=activations,
        loss=loss,
        working=working,
    )


def weights_kept(sizes: ModelSizes, options: MemoryOptions, count: int) -> int:
    """How many of `count` parameters one device holds. Tensor parallelism splits the layers and the head."""
    if options.strategy != "tp":
        return -(-count // options.shards)
    split = sizes.layers * sizes.layer_matrices + (0 if sizes.tied else sizes.head)
    return count - min(count, split) * (options.ranks - 1) // options.ranks


def weight_copies(sizes: ModelSizes, options: MemoryOptions) -> int:
    """Copies of weights that exist beside the weights themselves, in bytes."""
    embeddings = sizes.head if sizes.tied else 2 * sizes.head
    if options.strategy == "fsdp":
        # FSDP2 gathers a layer while the one before it computes. Embedding and head are the root, gathered all the time.
        return (2 * sizes.layer_matrices + embeddings) * options.compute_bytes
    if not options.autocast:
        return 0
    # Autocast casts each matrix once in a forward pass, and the backward pass keeps the copy. The embedding is looked up
    # in the original, and the loss keeps no copy of the head. With checkpointing a layer's copies live as long as the
    # layer's recomputation.
    layers = 1 if options.checkpointing else sizes.layers
    ranks = options.ranks if options.strategy == "tp" else 1
    return layers * sizes.layer_matrices * options.compute_bytes // ranks


def gradient_buffers(sizes: ModelSizes, options: MemoryOptions, trained: int) -> int:
    """Buffers for the reduction of gradients, in bytes."""
    if options.strategy == "ddp":
        return trained * options.weight_bytes  # the buckets; gradients are views of them only on request
    if options.strategy == "fsdp":
        # The unsharded gradients of the layer that is reduced, of the next one, and of the root.
        embeddings = sizes.head if sizes.tied else 2 * sizes.head
        return min(trained, 2 * sizes.layer_matrices + embeddings) * options.compute_bytes
    return 0


def step_memory(sizes: ModelSizes, task: TaskRows, options: MemoryOptions) -> tuple[int, int, int]:
    """Bytes of `activations`, `loss` and `working` of one task; see [`MemoryPlan`]."""
    residual, compute = options.weight_bytes, options.compute_bytes
    ranks = options.ranks if options.strategy == "tp" else 1
    layer = layer_activations(sizes, task, options) * task.tokens
    norm = sizes.hidden * (residual if sizes.block == "parallel" else FLOAT32 + residual)
    outside = norm * task.tokens + compute * sizes.hidden * task.labelled  # the last norm, the gradient of its output
    activations = layer * sizes.layers + outside
    recomputed = 0
    if options.checkpointing:
        activations = residual * sizes.hidden * task.tokens * sizes.layers + outside
        recomputed = layer

    loss, loss_working = loss_memory(sizes, task, options)
    cast = compute if options.autocast else 0
    # The backward pass of one layer begins with its MLP. A matrix's gradient frees the matrix's saved input, and a gated
    # MLP then has the gradients of the product and of both factors at once.
    mlp = (2 if sizes.block == "gated" else 1) * compute * sizes.intermediate // ranks
    gradient = (residual + cast) * sizes.hidden * sizes.intermediate // ranks
    backward = (mlp + (residual + cast) * sizes.hidden) * task.tokens + gradient + recomputed
    return activations, loss, max(loss_working, backward - loss)


def loss_memory(sizes: ModelSizes, task: TaskRows, options: MemoryOptions) -> tuple[int, int]:
    """Bytes that the loss keeps for the backward pass, and that it needs beyond them while it or its gradient is made."""
    residual, compute = options.weight_bytes, options.compute_bytes
    cast = compute if options.autocast else 0
    if options.strategy == "tp":
        # A head in parts computes all logits at once. The log-probabilities are kept; their gradient and the
        # logits' gradient join them. All are float32.
        logits = task.labelled * sizes.vocab
        head = (FLOAT32 + cast) * logits + (residual + cast) * sizes.head // options.ranks
        return 3 * FLOAT32 * logits, max(0, head - 3 * FLOAT32 * logits)
    # The gradient is computed in the forward pass, with logits and log-probabilities of a chunk in float32.
    chunk = min(task.labelled, max(1, CHUNK_LOGITS // sizes.vocab)) * sizes.vocab
    # In the backward pass it is scaled in the weights' dtype, and then added to the gradient of the tasks before.
    return compute * sizes.head, max(2 * FLOAT32 * chunk + cast * sizes.head, residual * sizes.head)


def layer_activations(sizes: ModelSizes, task: TaskRows, options: MemoryOptions) -> int:
    """Bytes for each token that the forward pass of one layer keeps, with what torch saves for each operation."""
    residual, compute = options.weight_bytes, options.compute_bytes
    ranks = options.ranks if options.strategy == "tp" else 1
    hidden = sizes.hidden
    queries, keys = sizes.query_width // ranks, sizes.key_width // ranks
    intermediate = sizes.intermediate // ranks
    if sizes.block == "gated":
        # RMSNorm computes in float32: its input there, and the normed states before the product with its weight. Twice.
        kept = 2 * (FLOAT32 + residual) * hidden
        # Inputs of the projections, cast once for query, key and value, and once for gate and up.
        kept += 2 * compute * hidden
        # The gate before and after its activation, the other factor, and the product, which is `down_proj`'s input.
        kept += 4 * compute * intermediate
    else:
        kept = residual * hidden  # LayerNorm's input
        kept += compute * hidden  # the output of the LayerNorm for query, key, value and `fc1`, cast once
        kept += 2 * compute * intermediate  # the activation's input and output
    if sizes.qk_norm == "layer":  # its input, which autocast casts to float32 on CUDA, but not on a CPU
        on_cuda = options.autocast and options.device == "cuda"
        kept += (FLOAT32 if on_cuda else compute) * (queries + keys)
        kept += 2 * FLOAT32 * (sizes.heads + sizes.kv_heads) // ranks  # means and deviations
    elif sizes.qk_norm == "rms":
        kept += (FLOAT32 + compute) * (queries + keys)
    # Attention keeps query, key, value and its result. With a mask, grouped keys and values are repeated for each query.
    kept += 4 * compute * queries + FLOAT32 * sizes.heads // ranks
    if sizes.block == "parallel" and options.device == "cpu":
        kept += compute * queries  # on a CPU the result is copied into the layout that `dense` takes
    if task.masked:
        kept += compute * task.length  # sdpa makes its own additive mask from ours in each layer
    return kept


# Text


def format_plan(
    counts: ParameterCounts,
    sizes: ModelSizes,
    tasks: Sequence[TaskRows],
    options: MemoryOptions,
    *,
    accumulation: int = 1,
    data_ranks: int = 1,
    steps: int | None = None,
    step_time: StepTime | None = None,
) -> str:
    """
    The plan as printed by `showo-hf train ... --dry-run`.

    Args:
        data_ranks: devices that get rows of their own: all of them, but one for each group of tensor parallelism.
        steps: optimizer steps of the run.
        step_time: measured on this machine, see [`~step_time.measure_step_time`].
    """
    memory = training_memory(sizes, tasks, options, counts.total, counts.trained)
    tokens = tokens_per_step(tasks, accumulation, data_ranks)
    flops = flops_per_step(sizes, tasks, accumulation, options.checkpointing)
    devices = data_ranks * options.ranks if options.strategy == "tp" else data_ranks
    lines = [f"parameters      {counts.total:,}, trained {counts.trained:,}, frozen {counts.frozen:,}"]
    lines += [f"  {part:<13} {total:,}, trained {trained:,}" for part, (total, trained) in counts.parts.items()]
    rows = ", ".join(f"{task.name} {task.rows} x {task.length}" for task in tasks)
    lines += [
        f"rows per device {rows}" + (f", {accumulation} times" if accumulation > 1 else ""),
        f"tokens a step   {tokens:,} on {data_ranks} x this device"
        if data_ranks > 1
        else f"tokens a step   {tokens:,}",
        f"operations      {flops:.3g} a step and device",
        f"devices         {devices} ({options.strategy})" if devices > 1 else "devices         1",
        f"memory          {gibibytes(memory.total)} per device",
    ]
    lines += [f"  {name:<13} {gibibytes(value)}" for name, value in vars(memory).items() if value]
    if step_time is not None:
        rate = flops / step_time.median
        lines.append(f"time of a step  {step_time.median:.3g} s on this machine, {rate:.3g} operations a second")
        if steps:
            lines.append(f"time of the run {step_time.median * steps / 3600:.3g} h for {steps:,} steps")
    return "\n".join(lines)


def gibibytes(count: int) -> str:
    """A number of bytes in GiB, or in MiB if it is small."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
