"""Small trained adapters, and ways to compare models."""

from pathlib import Path

import pytest
import tiny
import torch
from conversations import PROCESSOR

from showo_hf import ShowoForCausalLM
from showo_hf.training.adapters import adapter_config, add_adapter, save_adapter


ROWS = (30, 31)  # token ids whose rows are trained in some adapters
#: Options of `adapter_config` that tests use.
KINDS = {
    "lora": {},
    "dora": {"dora": True},
    "rows": {"trained_tokens": ROWS},
    "dora-rows": {"dora": True, "trained_tokens": ROWS},
    "head": {"targets": ["q_proj", "lm_head"]},
}
IDS = torch.tensor([[0, *range(26, 44), *range(400, 420)]])  # text ids and image tokens


def base_model(backbone="llama", tied=True, seed=0) -> ShowoForCausalLM:
    """The model that adapters are trained on; a new one each time."""
    return tiny.showo(backbone, seed, text_ids=PROCESSOR.pad_token_id, tie_word_embeddings=tied)


def train(model: ShowoForCausalLM, steps=4, seed=0, learning_rate=0.03) -> list[float]:
    """Train what has gradients on random texts and images, and return the losses."""
    generator = torch.Generator().manual_seed(seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate)
    losses = []
    model.train()
    for _ in range(steps):
        text = torch.randint(20, 60, (4, 12), generator=generator)
        text[:, 3:5] = torch.tensor(ROWS)
        image = torch.tensor([tiny.image(model.config, seed=seed + n) for n in range(4)])
        ids = torch.cat([text, image], 1)
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def trained_adapter(folder: Path, model: ShowoForCausalLM | None = None, seed=0, base="org/base", **options) -> Path:
    """Train an adapter, and save it. The model keeps it."""
    model = base_model() if model is None else model
    add_adapter(model, adapter_config(model, **({"rank": 4} | options)), seed=seed)
    train(model, seed=seed)
    save_adapter(model, folder, base)
    return folder


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """The folder of an adapter of the tied Llama model, by its kind and seed; each is trained once."""
    root = tmp_path_factory.mktemp("adapters")

    def folder(kind="lora", seed=0) -> Path:
        there = root / f"{kind}-{seed}"
        return there if there.exists() else trained_adapter(there, seed=seed, **KINDS[kind])

    return folder


@torch.no_grad()
def logits(model: ShowoForCausalLM) -> torch.Tensor:
    return model(IDS).logits


def snapshot(model: ShowoForCausalLM) -> dict:
    """Copies of all weights, and the type, mode and gradients of everything."""
    return {
        "weights": {name: weight.clone() for name, weight in model.state_dict().items()},
        "modules": [(name, type(module), module.training) for name, module in model.named_modules()],
        "gradients": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "adapters": list(getattr(model, "peft_config", ())),
        "shared": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
    }


def assert_same(found: dict, wanted: dict):
    """Assert that two snapshots are equal to the bit."""
    assert found["weights"].keys() == wanted["weights"].keys()
    for name, weight in wanted["weights"].items():
        assert torch.equal(found["weights"][name], weight), name
    for name in wanted.keys() - {"weights"}:
        assert found[name] == wanted[name], name
