import copy
import json

import pytest
import tiny
import torch
from torch import nn

from showo_hf.training import optimizers
from showo_hf.training.checkpoints import (
    load_optimizer,
    optimizer_tensors,
    parameter_names,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from showo_hf.training.optimizers import MuonWithAdamW, decays, inner_kernels, inner_matrices


@pytest.fixture
def fast_bfloat16(monkeypatch):
    """A CPU with products in bfloat16, where Muon is torch's own."""
    monkeypatch.setattr(optimizers, "computes_bfloat16", lambda: True)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))


def train(model, optimizer, steps, first=0, schedule=None):
    for step in range(first, first + steps):
        ids = torch.randint(5, (8,), generator=torch.Generator().manual_seed(step))
        loss = (model(ids) - nn.functional.one_hot(ids % 3, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return loss.item()


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_each_parameter_is_updated_as_its_own_optimizer_does_it(fast_bfloat16):
    model, reference = small_model(), small_model()
    combined = MuonWithAdamW(model, lr=0.02, weight_decay=0.1, betas=(0.9, 0.98))
    matrices = [reference[1].weight, reference[3].weight]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    vectors = [p for p in reference.parameters() if p.ndim == 1]
    groups = [{"params": [reference[0].weight], "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.98), fused=True)
    for step in range(4):
        train(model, combined, 1, step)
        ids = torch.randint(5, (8,), generator=torch.Generator().manual_seed(step))
        reference.zero_grad()
        (reference(ids) - nn.functional.one_hot(ids % 3, 3)).square().mean().backward()
        muon.step()
        adamw.step()
    for name, value in weights(reference).items():
        assert torch.equal(weights(model)[name], value)


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Muon's five Newton-Schulz iterations, in float64."""
    made = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = made @ made.T
        made = 3.4445 * made + (-4.7750 * gram + 2.0315 * gram @ gram) @ made
    return made


@pytest.mark.parametrize(("is_fast", "error"), [(True, (1e-3, 1e-1)), (False, (0, 1e-5))])
def test_muon_computes_in_float32_where_bfloat16_is_slow(monkeypatch, is_fast, error):
    monkeypatch.setattr(optimizers, "computes_bfloat16", lambda: is_fast)
    torch.manual_seed(0)
    layer = nn.Linear(24, 16, bias=False)
    before, gradient = layer.weight.detach().clone(), torch.randn(16, 24)
    layer.weight.grad = gradient.clone()
    MuonWithAdamW(layer, lr=1.0).step()
    update = (before - layer.weight.detach()) / (0.2 * 24**0.5)
    least, most = error
    assert least <= (update - orthogonalized(gradient)).abs().max() < most


def test_training_lowers_the_loss():
    model = small_model()
    optimizer = MuonWithAdamW(model, lr=0.02)
    before = train(model, optimizer, 1)
    assert train(model, optimizer, 150) < 0.2 * before


def test_a_schedule_changes_the_learning_rate_of_both():
    model = small_model()
    optimizer = MuonWithAdamW(model, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    train(model, optimizer, 1, schedule=schedule)
    stopped = weights(model)
    train(model, optimizer, 3, first=1, schedule=schedule)
    assert all(torch.equal(value, stopped[name]) for name, value in weights(model).items())


def test_a_checkpoint_restores_it_exactly(tmp_path):
    model = small_model()
    optimizer = MuonWithAdamW(model, lr=0.02, weight_decay=0.1)
    train(model, optimizer, 3)
    names = parameter_names(optimizer, model)
    tensors, document = optimizer_tensors(optimizer, names)
    write_tensors(tmp_path / "optimizer.safetensors", tensors)
    write_json(tmp_path / "optimizer.json", document)
    tensors, document = read_tensors(tmp_path / "optimizer.safetensors"), read_json(tmp_path / "optimizer.json")
    resumed = copy.deepcopy(model)
    fresh = MuonWithAdamW(resumed, lr=0.5, weight_decay=0.3)
    load_optimizer(fresh, parameter_names(fresh, resumed), tensors, document)
    train(model, optimizer, 3, first=3)
    train(resumed, fresh, 3, first=3)
    for name, value in weights(model).items():
        assert torch.equal(weights(resumed)[name], value)


@pytest.mark.parametrize("backbone", ["phi", "llama"])
def test_muon_gets_only_the_inner_matrices(backbone):
    model = tiny.showo(backbone)
    model.lm_head.requires_grad_(True)
    optimizer = MuonWithAdamW(model, lr=0.1, weight_decay=0.3)
    by_name: dict[str, set[int]] = {"adamw": set(), "muon": set()}
    for group in optimizer.param_groups:
        by_name[group["optimizer"]] |= {id(p) for p in group["params"]}
        assert all((p.ndim >= 2) == (group["weight_decay"] == 0.3) for p in group["params"])
    assert by_name["muon"] == {id(p) for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    assert by_name["muon"] | by_name["adamw"] == {id(p) for p in model.parameters() if p.requires_grad}


def test_frozen_matrices_are_not_trained():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    assert inner_matrices(model) == [model[0].weight]


class SmallConvolutions(nn.Module):
    """Two matrices and four kernels, of which two read and write pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv_in, self.conv_out = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.inner = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 4, (1, 2)))

    def forward(self, pixels):
        return self.conv_out(self.inner(self.conv_in(pixels)))

    def step(self, optimizer, seed):
        pixels = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        self(pixels).square().mean().backward()
        optimizer.step()


def test_inner_kernels_are_updated_as_matrices(fast_bfloat16):
    model = SmallConvolutions()
    kernels = [model.inner[0].weight, model.inner[2].weight]
    assert inner_kernels(model) == kernels
    matrices = [nn.Parameter(kernel.detach().clone().flatten(1)) for kernel in kernels]
    reference = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizer = MuonWithAdamW(model, lr=0.02, weight_decay=0.1)
    for seed in range(3):
        model.step(optimizer, seed)
        for kernel, matrix in zip(kernels, matrices, strict=True):
            matrix.grad = kernel.grad.flatten(1).clone()
        reference.step()
        assert all(torch.equal(a.flatten(1), b) for a, b in zip(kernels, matrices, strict=True))


def test_kernels_without_a_gradient_stay():
    model = SmallConvolutions()
    model.inner[2].weight.requires_grad_(False)
    assert inner_kernels(model) == [model.inner[0].weight]
    model.inner[2].weight.requires_grad_(True)
    optimizer = MuonWithAdamW(model, lr=0.02, weight_decay=0.1)
    before = model.inner[2].weight.detach().clone()
    model.inner[2].weight.requires_grad_(False)
    model.step(optimizer, 0)
    assert torch.equal(model.inner[2].weight, before)


def test_kernels_resume_exactly():
    model = SmallConvolutions()
    optimizer = MuonWithAdamW(model, lr=0.02)
    model.step(optimizer, 0)
    tensors, document = optimizer_tensors(optimizer, parameter_names(optimizer, model))
    tensors = {name: value.clone() for name, value in tensors.items()}
    document = json.loads(json.dumps(document))
    resumed = copy.deepcopy(model)
    fresh = MuonWithAdamW(resumed, lr=0.5)
    load_optimizer(fresh, parameter_names(fresh, resumed), tensors, document)
    for seed in (1, 2):
        model.step(optimizer, seed)
        resumed.step(fresh, seed)
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(resumed).items())


def test_a_model_of_one_kind_of_parameters_needs_one_optimizer():
    linear = nn.Linear(3, 2, bias=False)
    assert list(MuonWithAdamW(linear, lr=0.1).parts) == ["muon"]
    assert list(MuonWithAdamW(nn.LayerNorm(3), lr=0.1).parts) == ["adamw"]


def test_a_codebook_that_learns_by_gradient_has_no_weight_decay():
    model = tiny.vq(codebook_learning="gradient")
    codebook = model.quantizer.codebook
    assert codebook.requires_grad
    optimizer = MuonWithAdamW(model, lr=0.1, weight_decay=0.3)
    (decay,) = [
        group["weight_decay"] for group in optimizer.param_groups if any(p is codebook for p in group["params"])
    ]
    assert decay == 0.0 and any(group["weight_decay"] == 0.3 for group in optimizer.param_groups)
    names = {name for name, parameter in model.named_parameters() if decays(name, parameter)}
    assert "quantizer.codebook" not in names and "encoder.conv_in.weight" in names
