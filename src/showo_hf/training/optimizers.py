"""Muon for the matrices inside a network, AdamW for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """
    Muon for the weights of linear layers, AdamW for all other parameters.

    Muon (https://kellerjordan.github.io/posts/muon) orthogonalizes the momentum of each matrix before the update. Its
    updates are scaled to the size of AdamW's (arXiv:2502.16982), so that both use one learning rate. Weight decay applies
    to matrices and kernels, not to biases and norms.

    Args:
        model: the model. Its parameters with `requires_grad` are trained.
        lr: learning rate of all parameters.
        weight_decay: weight decay of matrices and kernels.
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
        matrices = inner_matrices(model)
        taken = {id(matrix) for matrix in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if groups:
            self.parts["adamw"] = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        if matrices:
            self.parts["muon"] = torch.optim.Muon(
                matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
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
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["optimizer"] == name]
            part.step()
        return loss


def inner_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained weights of linear layers, except output heads and weights that are tied to embeddings."""
    left_out = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        left_out.add(id(head.weight))
    return unique(
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad and id(module.weight) not in left_out
    )


def unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters, each once."""
    return list({id(parameter): parameter for parameter in parameters}.values())
