"""
A model on several devices: fully sharded (FSDP2) and tensor parallel. DDP needs nothing beyond the Trainer.

transformers shards the models: `DistributedConfig` describes a mesh of `replicas x fsdp_size x tp_size` processes, and
the model's plans say what is sharded. Processes of one tensor-parallel group have consecutive ranks and see the same
data.
"""

import contextlib
import copy
import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig, gather_full_state_dict
from transformers.distributed.fsdp import apply_fully_sharded_data_parallelism
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
from transformers.distributed.tensor_parallel import ReplicatedWithGradAllReduce
from transformers.distributed.utils import TransformersDeviceMesh

from showo_hf.pipelines import ShowoT2IPipeline

from ..models.modeling_showo import ShowoForCausalLM
from .configs import ConceptConfig, FinetuneConfig, LoraConfig, RunConfig
from .errors import TrainingError
from .shards import is_sharded


T = TypeVar("T")

# Agreement of processes


def process_count() -> int:
    """The number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def together() -> Iterator[None]:
    """
    A context that all processes enter, and that raises an error on all if it raises one on any.

    Raises:
        OSError: on the others, if the error of the first that failed is one of the system.
        TrainingError: on the others, for all other errors.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if process_count() > 1:
        own = (
            None if error is None else (getattr(error, "errno", None), str(getattr(error, "strerror", None) or error))
        )
        found: list[Any] = [None] * process_count()
        dist.all_gather_object(found, own)
        failed = [rank for rank, one in enumerate(found) if one is not None]
        if failed and error is None:
            number, text = found[failed[0]]
            if number is not None:
                raise OSError(number, text)
            raise TrainingError(f"Process {failed[0]} stopped: {text}")
    if error is not None:
        raise error


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` returns on the first process, on all. An error is raised on all."""
    result: list[Any] = [None]
    with together():
        if process_count() == 1 or dist.get_rank() == 0:
            result = [compute()]
    if process_count() > 1:
        dist.broadcast_object_list(result)
    return result[0]


# Sharding


class SummedGradient(ReplicatedWithGradAllReduce):
    """
    A whole weight whose gradient is summed over a tensor-parallel group, in each backward pass of a step.

    transformers sums what has accumulated in `grad`, which counts the earlier backward passes of a step several times.
    """

    def install_forward(self, module: nn.Module, mesh):
        forward = module.forward
        hooked: dict[str, nn.Parameter] = {}

        def summed(gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.contiguous()
            dist.all_reduce(gradient, group=mesh.get_group())
            return gradient

        def forward_with_hooks(*args, **kwargs):
            for name, parameter in module.named_parameters(recurse=False):
                if torch.is_grad_enabled() and parameter.requires_grad and hooked.get(name) is not parameter:
                    parameter.register_hook(summed)
                    hooked[name] = parameter
            return forward(*args, **kwargs)

        module.forward = forward_with_hooks
        return module


SUMMED_GRADIENT = "summed_gradient"
ALL_PARALLEL_STYLES.register(SUMMED_GRADIENT, SummedGradient())


def distribute(model: ShowoForCausalLM, fsdp_size: int, tp_size: int) -> ShowoForCausalLM:
    """
    Shard a model that each process has loaded. Every process calls it.

    Args:
        model: on the device of this process.
        fsdp_size: processes that share the weights. The rest of the processes has replicas.
        tp_size: processes that share the computation of each layer.

    Raises:
        TrainingError: if the number of processes is not a multiple of `fsdp_size * tp_size`.
    """
    count = process_count()
    if count % (fsdp_size * tp_size):
        raise TrainingError(
            f"`fsdp_size` times `tp_size` must divide the number of processes, {count}, got {fsdp_size} and {tp_size}."
        )
    if fsdp_size == tp_size == 1:
        return model
    sizes = {"fsdp_size": fsdp_size, "dp_replicate_size": count // (fsdp_size * tp_size)}
    config = DistributedConfig(tp_size=tp_size, tp_plan=own_plan(model, tp_size), **sizes)
    config, _, mesh = model.prepare_distribute_model(config)
    # Weights must not be shared while they are split, and must be shared again before they are fully sharded.
    head, embedding = model.lm_head, model.get_input_embeddings()
    tied = head.weight is embedding.weight
    if tied:
        head.weight = nn.Parameter(head.weight.detach(), requires_grad=head.weight.requires_grad)
    model.maybe_distribute_model(model, replace(config, fsdp_size=1, dp_replicate_size=1), mesh)
    if tied:
        head.weight = embedding.weight
    model.config.distributed_config = config
    if config.dp_size > 1:
        fully_shard(model, mesh)
    return model


def own_plan(model: ShowoForCausalLM, tp_size: int) -> dict[str, str] | None:
    """The changes of the model's tensor-parallel plan that several backward passes in a step need."""
    text = model.config.text_config
    if tp_size == 1 or (getattr(text, "num_key_value_heads", None) or text.num_attention_heads) % tp_size:
        return None  # each process has all heads, so the gradients are whole
    changed = [name for name, style in model.tp_plan.items() if style == "replicated_with_grad_allreduce"]
    return dict.fromkeys(changed, SUMMED_GRADIENT) or None


def fully_shard(model: ShowoForCausalLM, mesh: TransformersDeviceMesh):
    """
    FSDP2: each layer's weights are gathered for its own computation, all others for the whole pass.

    Frozen modules beside the backbone stay whole, so that a process can encode images when others do not.
    """
    frozen = {name: getattr(model, name) for name in ("image_tokenizer", "vision_tower")}
    for name in frozen:
        setattr(model, name, None)
    plan = {name: "free_full_weight" for name, _ in model.named_modules() if re.fullmatch(r"model\.layers\.\d+", name)}
    apply_fully_sharded_data_parallelism(model, mesh, plan, {})
    # Otherwise the gathered weights would stay after a forward pass without a backward pass, and become stale.
    model.set_reshard_after_forward(True, recurse=False)
    for name, module in frozen.items():
        setattr(model, name, module)


def check_sharding(config: RunConfig):
    """Raise `TrainingError` for what cannot be trained with weights that are spread over processes."""
    if not isinstance(config, LoraConfig):
        return
    if config.tp_size > 1:
        raise TrainingError(f"`tp_size` must be 1 for adapters, got {config.tp_size}. Use `fsdp_size`.")
    for name in ("dora", "merge", "quantize"):
        if config.fsdp_size > 1 and getattr(config, name):
            raise TrainingError(f"`{name}` needs `fsdp_size` 1, got {config.fsdp_size}.")
    if config.fsdp_size > 1 and isinstance(config, ConceptConfig) and config.train_word:
        raise TrainingError(
            f"`train_word` needs `fsdp_size` 1, got {config.fsdp_size}. With `train_word=false` the adapters alone learn "
            "the word."
        )


def check_deepspeed(config: RunConfig):
    """
    Raise `TrainingError` if DeepSpeed is asked for and cannot be used.

    Its own checkpoints are pickles, so a run with it writes none and cannot be resumed.
    """
    deepspeed = config.training.get("deepspeed")
    if not deepspeed:
        return
    if not isinstance(deepspeed, dict):
        try:
            deepspeed = json.loads(Path(deepspeed).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"`deepspeed` must be a JSON file, and '{deepspeed}' cannot be read: {error}"
            ) from error
    if deepspeed.get("zero_optimization", {}).get("stage", 0) == 3:
        raise TrainingError(
            "`deepspeed` must have a ZeRO stage of 0 to 2, got 3. Use `fsdp_size` to shard the weights."
        )
    if isinstance(config, FinetuneConfig) and (config.fsdp_size > 1 or config.tp_size > 1):
        raise TrainingError("`deepspeed` cannot be used together with `fsdp_size` or `tp_size`.")
    if importlib.util.find_spec("deepspeed") is None:
        raise TrainingError("`deepspeed` needs the package 'deepspeed': pip install deepspeed")


def keep_whole(plugin: Any, model: ShowoForCausalLM):
    """Keep accelerate's FSDP away from the frozen modules, so that each process can encode images by itself."""
    plugin.ignored_modules = [module for module in (model.image_tokenizer, model.vision_tower) if module is not None]


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """
    A context for what the processes of a run do. It ends their communication.

    Raises:
        TrainingError: in place of the errors that processes have when another one ends.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo raises no class of its own
        if process_count() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise TrainingError(f"Another process of this run ended: {str(error).splitlines()[0][:200]}") from error
        raise
    if process_count() > 1:
        dist.destroy_process_group()


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The norm of all gradients together, which may be spread over different groups of processes."""
    groups = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            groups[parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None].append(parameter.grad)
    norms = [nn.utils.get_total_norm(gradients) for gradients in groups.values()]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def whole_pipeline(pipe: ShowoT2IPipeline) -> ShowoT2IPipeline:
    """
    A pipeline whose model is not sharded, with the weights of one whose model may be. All processes call it.

    Only the first process gets the weights; the others get `pipe`. A model with adapters stays as it is, because
    adapters are whole on each process.
    """
    if not is_sharded(parameter for parameter in pipe.model.parameters() if parameter.requires_grad):
        return pipe
    state = gather_full_state_dict(pipe.model)
    if dist.get_rank() != 0:
        return pipe
    config = copy.deepcopy(pipe.model.config)
    config.distributed_config = None
    model = ShowoForCausalLM(config)
    model.load_state_dict(state)
    model.generation_config = copy.deepcopy(pipe.model.generation_config)
    return type(pipe)(**{**pipe.components, "model": model.eval()})
