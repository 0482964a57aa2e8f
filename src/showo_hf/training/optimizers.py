"""Muon for the matrices and kernels inside a network, AdamW for the rest."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..utils.cpu_features import computes_bfloat16


class Float32ForBfloat16(TorchFunctionMode):
    """While it is active, `tensor.bfloat16()` gives a copy in float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        return func(*args, **(kwargs or {}))


class MuonWithAdamW(torch.optim.Optimizer):
    """
    Muon for the weights of linear layers and the kernels of convolutions, AdamW for all other parameters.

    Muon (https://kellerjordan.github.io/posts/muon) orthogonalizes the momentum of each matrix before the update. Its
    updates are scaled to the size of AdamW's (arXiv:2502.16982), so that both use one learning rate. A kernel is a matrix
    with one row for each output channel. Weight decay applies to what [`decays`].

    Muon computes in bfloat16, or in float32 on a CPU that has no fast products in bfloat16.

    Args:
        model: the model. Its parameters with `requires_grad` are trained.
        lr: learning rate of all parameters.
        weight_decay: weight decay of what [`decays`].
        betas, eps: of AdamW.
        fused: use the fused kernel of AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool = True,
    ):
        matrices = inner_matrices(model) + inner_kernels(model)
        taken = {id(matrix) for matrix in matrices}
        rest = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in taken}
        groups = [
            {"params": [p for name, p in rest.items() if decays(name, p)], "weight_decay": weight_decay},
            {"params": [p for name, p in rest.items() if not decays(name, p)], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if groups:
            self.parts["adamw"] = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        if matrices:
            self.parts["muon"] = torch.optim.Muon(
                [as_matrix(one) for one in matrices], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.parts["muon"].param_groups[0]["params"] = matrices
        super().__init__(
            [{**group, "optimizer": name} for name, part in self.parts.items() for group in part.param_groups], {}
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters. `closure`, if given, computes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self.parts.items():
            # State and groups are this object's, which schedulers change and `load_state_dict` replaces.
            groups = [group for group in self.param_groups if group["optimizer"] == name]
            if name == "muon":
                pairs = [(one, as_matrix(one)) for group in groups for one in group["params"] if one.grad is not None]
                matrices = dict(pairs)
                groups = [
                    {**group, "params": [matrices[p] for p in group["params"] if p in matrices]} for group in groups
                ]
                part.state = defaultdict(
                    dict, {matrix: reshaped(self.state[one], matrix.shape) for one, matrix in pairs}
                )
            else:
                part.state = self.state
            part.param_groups = groups
            if name == "muon":
                on_cpu = all(one.device.type == "cpu" for one, _ in pairs)
                with Float32ForBfloat16() if on_cpu and not computes_bfloat16() else nullcontext():
                    part.step()
                self.state.update({one: reshaped(part.state[matrix], one.shape) for one, matrix in pairs})
            else:
                part.step()
        return loss


def decays(name: str, parameter: nn.Parameter) -> bool:
    """
    Whether a parameter has weight decay: matrices and kernels have, biases and norms have not. A codebook has none: its
    entries follow the latents, and decay would pull unused ones to zero.
    """
    return parameter.ndim >= 2 and name.rpartition(".")[2] != "codebook"


def reshaped(state: dict[str, Any], shape: torch.Size) -> dict[str, Any]:
    """The state of a parameter, with its tensors in another shape of as many numbers."""
    return {name: value.view(shape) if torch.is_tensor(value) else value for name, value in state.items()}


def as_matrix(parameter: nn.Parameter) -> nn.Parameter:
    """A kernel (out, in, ...) as a matrix (out, in * ...) that shares its memory; a matrix as it is."""
    if parameter.ndim == 2:
        return parameter
    matrix = nn.Parameter(parameter.detach().view(len(parameter), -1))
    matrix.grad = None if parameter.grad is None else parameter.grad.reshape(matrix.shape)
    return matrix


def inner_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained weights of linear layers, except output heads and weights that are tied to embeddings."""
    left_out = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return unique(
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and module.weight.requires_grad
        and id(module.weight) not in left_out
    )


def inner_kernels(model: nn.Module) -> list[nn.Parameter]:
    """The trained kernels of convolutions, except those that read and write pixels or codes (`conv_in`, `conv_out`)."""
    return unique(
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and module.weight.requires_grad
        and name.rpartition(".")[2] not in ("conv_in", "conv_out")
    )


def unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters, each once."""
    return list({id(parameter): parameter for parameter in parameters}.values())
