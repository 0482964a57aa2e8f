"""Embeddings of image tokens that a network computes from the codebook while a model is trained."""

import numpy as np
import parallel_run
import pytest
import small_run
import tiny
import torch
from safetensors.torch import load
from torch import nn
from torch.nn.utils import parametrize

from showo_hf import ShowoT2IPipeline
from showo_hf.models.modeling_showo import ShowoForCausalLM, has_plain_weight
from showo_hf.training.code_embeddings import CodeEmbeddings, codebook_entries, embed_codes, plain_embeddings
from showo_hf.training.configs import FinetuneConfig, LoraConfig
from showo_hf.training.errors import TrainingError
from showo_hf.training.optimizers import MuonWithAdamW
from showo_hf.training.run_checks import check_same_options
from showo_hf.utils.module_copies import copy_on_cpu


@pytest.fixture(params=[True, False], ids=["tied", "with a head of its own"])
def model(request) -> ShowoForCausalLM:
    torch.manual_seed(0)
    config = tiny.pipeline(tiny.processor()).model.config
    config.tie_word_embeddings = request.param
    return ShowoForCausalLM(config).eval()


def rows_of(model: ShowoForCausalLM) -> slice:
    first = model.config.image_token_offset
    return slice(first, first + model.config.codebook_size)


def network(model: ShowoForCausalLM) -> list[nn.Parameter]:
    """The weights that compute the embedding's rows."""
    return list(model.get_input_embeddings().parametrizations.weight[0].parameters())


def ids(model: ShowoForCausalLM) -> torch.Tensor:
    """A row of image tokens with texts around it."""
    first = model.config.image_token_offset
    return torch.tensor([[1, 2, first, first + 1, first + 5, 3]])


@pytest.mark.parametrize("make", [tiny.lfq, tiny.vq])
def test_entries_are_those_that_tokens_are_decoded_from(make):
    tokenizer = make()
    entries = codebook_entries(tokenizer)
    assert len(entries) == tokenizer.config.codebook_size == len(entries.unique(dim=0))
    tokens = torch.tensor([[[3, 0], [1, 2]]])
    assert torch.equal(tokenizer.codes_of(tokens)[0].flatten(1).T, entries[tokens.flatten()])


def test_only_rows_of_image_tokens_change_and_keep_their_size(model):
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    before = model.get_input_embeddings().weight.detach().clone()
    embed_codes(model)
    rows, after = rows_of(model), model.get_input_embeddings().weight.detach()
    others = torch.ones(len(before), dtype=torch.bool)
    others[rows] = False
    assert torch.equal(after[others], before[others]) and not torch.equal(after[rows], before[rows])
    torch.testing.assert_close(after[rows].square().mean(), before[rows].square().mean())
    assert torch.equal(model.lm_head.weight, after) == tied
    assert has_plain_weight(model.lm_head, torch.zeros(1, before.shape[1])), (
        "losses are computed in chunks, as without it"
    )


def test_tokens_with_entries_alike_have_embeddings_alike():
    """Neighbours along a line of entries are alike, and far ones are not. Rows that are learned apart know nothing of it."""
    torch.manual_seed(0)
    entries = torch.linspace(-1, 1, 64)[:, None] * torch.tensor([[1.0, 0.5]])
    weight = nn.Parameter(torch.randn(70, 32))
    made = CodeEmbeddings(entries, 4, weight, torch.Generator().manual_seed(0))(weight)[4:68].detach()
    alike = nn.functional.cosine_similarity
    near, far = alike(made[:-1], made[1:]).mean(), alike(made[:32], made[32:]).mean()
    assert near > 0.98 and far < 0.8


def grid(points: int) -> torch.Tensor:
    """The entries of a codebook, (points ** 2, 2)."""
    line = torch.linspace(-1, 1, points)
    return torch.cartesian_prod(line, line)


@torch.no_grad()
def test_rows_that_follow_from_the_codebook_go_on_as_they_are():
    """Those of a model that was trained in this way, by a network with other first weights."""
    torch.manual_seed(0)
    entries, embedding = grid(20), nn.Parameter(torch.randn(410, 32))
    rows = slice(4, 404)
    before = CodeEmbeddings(entries, 4, embedding, torch.Generator().manual_seed(0))
    embedding[rows] = 0.5 * torch.randn(400, 32)
    made = before(embedding)
    learned = nn.Parameter(made.clone())
    after = CodeEmbeddings(entries, 4, learned, torch.Generator().manual_seed(1))
    torch.testing.assert_close(after(learned), made)
    assert after.computed().std() > 5 * (made[rows] - after.computed()).std(), "the network has the larger part"


@torch.no_grad()
def test_rows_that_do_not_follow_from_the_codebook_are_learned_anew():
    torch.manual_seed(0)
    made = nn.Parameter(torch.randn(410, 32))
    codes = CodeEmbeddings(grid(20), 4, made, torch.Generator().manual_seed(0))
    assert not made[4:404].any() and made[:4].all() and made[404:].all()
    torch.testing.assert_close(codes.outer.weight.std() * 32, torch.tensor(1.0), rtol=0.05, atol=0)


def test_what_one_token_learns_moves_those_that_look_like_it():
    """A step that is for one token alone moves its neighbour along the line more than the token at the other end."""
    torch.manual_seed(0)
    entries = torch.linspace(-1, 1, 64)[:, None] * torch.tensor([[1.0, 0.5]])
    embedding = nn.Embedding(70, 32)
    codes = CodeEmbeddings(entries, 4, embedding.weight, torch.Generator().manual_seed(0))
    parametrize.register_parametrization(embedding, "weight", codes)
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([4])).sum().backward()
    torch.optim.SGD(embedding.parameters(), lr=0.01).step()
    moved = (embedding.weight - before).norm(dim=1)[4:68]
    assert moved[1] > 0.9 * moved[0] > 2 * moved[63]


def test_the_plain_model_computes_the_same_and_has_its_old_parameters(model):
    names = [name for name, _ in model.named_parameters()]
    embed_codes(model)
    optimizer = MuonWithAdamW(model, lr=1e-2)
    model(ids(model), labels=ids(model)).loss.backward()
    optimizer.step()
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        logits = model(ids(model)).logits
        plain_embeddings(model)
        assert sorted(name for name, _ in model.named_parameters()) == sorted(names)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
        torch.testing.assert_close(model(ids(model)).logits, logits)


def test_a_copy_becomes_plain_and_the_model_goes_on(model):
    """As a push in mid-run does."""
    embed_codes(model)
    with torch.no_grad():
        logits = model(ids(model)).logits
        copied = copy_on_cpu(model)
        plain_embeddings(copied)
        torch.testing.assert_close(copied(ids(model)).logits, logits)
        assert torch.equal(model(ids(model)).logits, logits)
    model(ids(model), labels=ids(model)).loss.backward()
    assert all(weight.grad is not None for weight in network(model))


def test_a_network_that_is_shared_is_computed_once(model, monkeypatch):
    embed_codes(model)
    computed, compute = [], CodeEmbeddings.computed
    monkeypatch.setattr(CodeEmbeddings, "computed", lambda codes: computed.append(codes) or compute(codes))
    with parametrize.cached():
        model(ids(model), labels=ids(model))
    assert len(computed) == (1 if model.config.tie_word_embeddings else 2)


def test_autocast_does_not_round_the_rows(model):
    embed_codes(model)
    with torch.autocast("cpu", torch.bfloat16):
        within = model.get_input_embeddings().weight
    assert torch.equal(within, model.get_input_embeddings().weight)


def test_a_model_without_an_image_tokenizer_is_refused(model):
    model.image_tokenizer = None
    with pytest.raises(ValueError, match="`embed_codes` needs a model with an image tokenizer"):
        embed_codes(model)


@pytest.mark.parametrize(
    ("kind", "entries", "named"),
    [
        (LoraConfig, {}, "an adapter"),
        (FinetuneConfig, {"fsdp_size": 2}, "fsdp_size=2"),
        (FinetuneConfig, {"tp_size": 2}, "tp_size=2"),
        (FinetuneConfig, {"training": {"fsdp": "full_shard"}}, "fsdp=full_shard"),
        (FinetuneConfig, {"training": {"deepspeed": "zero.json"}}, "deepspeed=zero.json"),
    ],
)
def test_adapters_and_spread_weights_are_refused(kind, entries, named):
    with pytest.raises(ValueError, match=f"`embed_codes` needs the whole model on each device, got {named}"):
        kind(recipe="test", output="out", steps=1, data="x", embed_codes=True, **entries)


def test_a_part_of_the_model_alone_is_refused():
    """The new embeddings would stay as they were drawn."""
    with pytest.raises(ValueError, match="`trained` must be left out, got 'layers'"):
        FinetuneConfig(recipe="test", output="out", steps=1, data="x", embed_codes=True, trained="layers")


def test_runs_of_earlier_versions_go_on_without_it():
    check_same_options({"steps": 3}, {"steps": 3, "embed_codes": False})
    with pytest.raises(TrainingError, match="`embed_codes` was False and is True"):
        check_same_options({"steps": 3}, {"steps": 3, "embed_codes": True})


# Runs


def test_a_run_gives_a_plain_pipeline_that_draws_as_its_samples(tmp_path):
    output = small_run.run(tmp_path, embed_codes=True, muon=True, prompts=["red"])
    assert set(small_run.weights(output)) == set(small_run.weights(small_run.shared() / "model"))
    image = ShowoT2IPipeline.from_pretrained(output)("red", generator=torch.Generator().manual_seed(0)).images[0]
    sample = small_run.Image.open(tmp_path / "out-samples" / "step-6-0.png")
    assert np.array_equal(np.asarray(image), np.asarray(sample))


def test_a_stopped_run_goes_on_exactly(tmp_path):
    options = {"embed_codes": True, "muon": True}
    small_run.run(tmp_path / "whole", **options)
    parts = tmp_path / "parts"
    small_run.run(parts, **options)
    for path in (parts / "out-checkpoints" / "checkpoint-6", parts / "out"):
        small_run.shutil.rmtree(path)
    assert small_run.checkpoints(parts) == ["checkpoint-4"]
    small_run.run(parts, **options)
    assert small_run.same_result(tmp_path / "whole", parts)


@pytest.mark.parametrize("save_dtype", ["float32", "bfloat16"])
def test_a_push_in_mid_run_is_plain_and_the_run_goes_on(tmp_path, hub_here, save_dtype):
    options = {"embed_codes": True, "save_dtype": save_dtype, "ema_decay": None}
    small_run.run(tmp_path / "alone", **options)
    small_run.run(tmp_path / "pushed", **options, push_to_hub="someone/new", push_steps=2)
    assert small_run.same_result(tmp_path / "alone", tmp_path / "pushed")
    files = hub_here.commits["someone/new"][0][2]
    assert set(load(files["model/model.safetensors"])) == set(small_run.weights(tmp_path / "alone" / "out"))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    model = str(small_run.write_model(tmp_path / "model", dropout=0.0))  # its draws depend on the rows of a process
    options = {"model": model, "embed_codes": True}
    small_run.run(tmp_path / "one", **options, batch_size=4)
    parallel_run.run(2, tmp_path / "two", **options, batch_size=2)
    one, two = (
        [row["loss"] for row in small_run.log_rows(tmp_path / name) if "loss" in row] for name in ("one", "two")
    )
    assert len(one) == 6 and two == pytest.approx(one, abs=1e-4)
    assert set(small_run.weights(tmp_path / "one" / "out")) == set(small_run.weights(tmp_path / "two" / "out"))
