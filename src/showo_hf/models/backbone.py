"""What Show-o changes in a decoder of transformers: QK-Norm, fused activations and casts, the tensor-parallel plan."""

import re
from collections import OrderedDict

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation


class PerHeadLayerNorm(nn.LayerNorm):
    """
    LayerNorm over the channels of each head; all heads share its weights.

    It takes and returns (..., heads * head_dim). It also works on a shard that holds some of the heads.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        heads = hidden_states.unflatten(-1, (-1, self.normalized_shape[0]))  # (..., heads, head_dim)
        return super().forward(heads).flatten(-2)


def add_qk_norm(backbone: PreTrainedModel, eps: float = 1e-5):
    """
    Add a [`PerHeadLayerNorm`] after the query and key projections of every attention layer that has no QK-Norm.

    Each projection becomes `nn.Sequential(proj, norm)`, so quantization and adapters still find plain linear layers.
    The backbone's tensor-parallel plan changes with it. Layers with a norm of their own (`q_layernorm` in Phi, `q_norm`
    in Qwen3) stay unchanged, and the plan covers their norms as well.

    Raises:
        ValueError: if no layer has separate query and key projections.
    """
    found = False
    normed = set()  # names of the projections, with `*` for the layer
    own = set()  # names of the norms that the layers have already
    for path, module in list(backbone.named_modules()):
        has_projections = isinstance(getattr(module, "q_proj", None), nn.Linear) and hasattr(module, "k_proj")
        found |= has_projections
        own |= {
            re.sub(r"\d+", "*", f"{path}.{name}") for name in ("q_layernorm", "k_layernorm") if hasattr(module, name)
        }
        if not has_projections or hasattr(module, "q_layernorm") or hasattr(module, "q_norm"):
            continue
        for name in ("q_proj", "k_proj"):
            norm = PerHeadLayerNorm(module.head_dim, eps=eps)
            setattr(module, name, nn.Sequential(OrderedDict(proj=getattr(module, name), norm=norm)))
            normed.add(re.sub(r"\d+", "*", f"{path}.{name}"))
    if not found:
        raise ValueError(
            f"`qk_layernorm` needs a backbone with `q_proj` and `k_proj` layers, got {type(backbone).__name__}. "
            "Set `qk_layernorm` to False for this backbone."
        )
    if backbone.tp_plan:
        # Each process sees only its own heads. Phi's plan lacks this for its norms.
        shared = dict.fromkeys(own, "replicated_with_grad_allreduce")
        backbone.tp_plan = shared | plan_with_qk_norm(backbone.tp_plan, normed)


def plan_with_qk_norm(plan: dict[str, str], normed: set[str]) -> dict[str, str]:
    """A tensor-parallel plan in which the style of each projection in `normed` applies to its linear layer."""
    changed = {}
    for name, style in plan.items():
        if name in normed:
            changed[f"{name}.proj"] = style
            changed[f"{name}.norm"] = "replicated_with_grad_allreduce"  # each process sees only its own heads
        else:
            changed[name] = style
    return changed


def plan_with_whole_heads(plan: dict[str, str]) -> dict[str, str]:
    """
    A tensor-parallel plan for a number of heads that the number of processes does not divide.

    The weights of the attention layers are still split, but every process gets the queries, keys and values of all
    heads and computes the whole attention.
    """
    styles = {
        "colwise": "colwise_gather_output",
        "rowwise": "rowwise_split_input",
        "replicated_with_grad_allreduce": "replicate",
    }
    return {name: styles.get(style, style) if ".self_attn." in name else style for name, style in plan.items()}


def fuse_activations(backbone: PreTrainedModel):
    """Replace Phi's `gelu_new`, seven elementwise operations, by the one kernel that torch has for this formula."""
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def cast_norms_once(backbone: PreTrainedModel):
    """
    Under autocast, cast the output of each layer's norms once for all projections that read it.

    Otherwise autocast casts it for each of them, and training keeps all the copies. Norms whose output is added to the
    residual stream, as those after attention in Gemma, stay in float32.
    """
    for layer in list(backbone.modules()):
        names = dict(layer.named_children()).keys()
        if "input_layernorm" not in names or names & {"pre_feedforward_layernorm", "post_feedforward_layernorm"}:
            continue
        for name in names & {"input_layernorm", "post_attention_layernorm"}:
            getattr(layer, name).register_forward_hook(cast_as_autocast)


def cast_as_autocast(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    """The output of a module in the dtype of autocast, where it is enabled."""
    device = output.device.type
    return output.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else output
