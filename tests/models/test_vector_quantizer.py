"""The codebook: nearest entries against brute force, learning by EMA against the paper, restarts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from showo_hf.models import vector_quantizer
from showo_hf.models.vector_quantizer import VectorQuantizer, nearest_codes


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(codes=8, channels=3, **options) -> VectorQuantizer:
    made = VectorQuantizer(codes, channels, **options)
    with torch.no_grad():
        made.codebook.copy_(randn(codes, channels, seed=1))
    return made


# Nearest entries


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 70), st.integers(1, 200), st.integers(1, 9), st.sampled_from([64, 128]), st.integers(0, 10**6))
def test_the_nearest_entry_equals_brute_force(positions, codes, channels, chunk, seed):
    latents, codebook = randn(positions, channels, seed=seed).double(), randn(codes, channels, seed=seed + 1).double()
    with pytest.MonkeyPatch.context() as patch:  # several chunks of codes and of positions
        patch.setattr(vector_quantizer, "CODES_IN_CHUNK", chunk)
        patch.setattr(vector_quantizer, "CPU_CHUNK", 16 * chunk)
        found = nearest_codes(latents, codebook)
    assert found.dtype == torch.int64 and found.shape == (positions,)
    distances = (latents[:, None] - codebook).square().sum(-1)  # (positions, codes)
    assert torch.equal(found, distances.argmin(1))


@pytest.mark.parametrize("codes", [5, 64, 65, 5000])
def test_the_first_of_equal_entries_is_taken(codes):
    codebook = torch.ones(codes, 4)
    assert nearest_codes(randn(7, 4), codebook).eq(0).all()
    codebook[3] = codebook[4] = 2.0
    assert nearest_codes(torch.full((300, 4), 3.0), codebook).eq(3).all()


def test_half_precision_is_compared_in_float32():
    codebook = torch.tensor([[1.0], [1.0 + 2**-7]]).bfloat16()
    latents = torch.tensor([[1.0], [1.0 + 2**-7]]).bfloat16()
    assert nearest_codes(latents, codebook).tolist() == [0, 1]


def test_no_table_of_all_distances_is_made():
    """The largest tensor that any operation makes has one chunk of distances."""
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    latents, codebook = randn(2048, 8), randn(16384, 8, seed=1)
    with Sizes():
        found = nearest_codes(latents, codebook)
    assert largest <= vector_quantizer.CPU_CHUNK < latents.shape[0] * codebook.shape[0] / 8
    rows = slice(0, 50)
    assert torch.equal(found[rows], torch.cdist(latents[rows].double(), codebook.double()).argmin(1))


def test_the_cosine_distance_ignores_lengths():
    made = quantizer(cosine=True)
    latents = randn(50, 3, seed=2)
    expected = (F.normalize(latents, dim=1) @ F.normalize(made.codebook, dim=1).T).argmax(1)
    assert torch.equal(made.nearest(latents), expected)
    assert torch.equal(made.nearest(latents * torch.rand(50, 1).add(0.1)), expected)
    torch.testing.assert_close(made.entries(expected).norm(dim=1), torch.ones(50))
    assert not torch.equal(quantizer().nearest(latents), expected), "the Euclidean distance does not"


# EMA


def paper(codebook, batches, decay):
    """arXiv:1711.00937, A.1, in counts: N and m decay, and e = m / N. Each entry starts with an equal share."""
    sizes = torch.full((len(codebook),), len(batches[0][0]) / len(codebook), dtype=torch.float64)
    sums = codebook.double() * sizes[:, None]
    for latents, indices in batches:
        chosen = F.one_hot(indices, len(codebook)).double()  # (positions, codes)
        sizes = decay * sizes + (1 - decay) * chosen.sum(0)
        sums = decay * sums + (1 - decay) * chosen.T @ latents.double()
    return sums / sizes[:, None]


def test_learning_by_ema_equals_the_paper():
    made = quantizer(learning="ema", decay=0.9, dead_code_threshold=0.0)
    assert not made.codebook.requires_grad
    batches = [
        (randn(40, 3, seed=seed), torch.randint(7, (40,), generator=torch.Generator().manual_seed(seed)))
        for seed in range(5)
    ]
    expected = paper(made.codebook, batches, 0.9)
    unused = made.codebook[7].clone()
    for latents, indices in batches:
        assert made.update(latents, indices) == 0
    torch.testing.assert_close(made.codebook.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.codebook[7], unused)
    assert made.code_usage[7].item() == pytest.approx(0.9**5)
    assert made.code_usage.mean().item() == pytest.approx(1), "the shares have the mean 1"


def test_cosine_entries_keep_the_length_1():
    made = quantizer(learning="ema", cosine=True, decay=0.5, dead_code_threshold=0.0)
    latents = F.normalize(randn(40, 3, seed=3), dim=1)
    made.update(latents, made.nearest(latents))
    torch.testing.assert_close(made.codebook.norm(dim=1), torch.ones(8))


def test_entries_move_to_the_centers_of_their_clusters():
    centers = torch.tensor([[5.0, 0], [-5.0, 0], [0, 5.0], [0, -5.0]])
    made = VectorQuantizer(4, 2, learning="ema", decay=0.5, dead_code_threshold=0.2)
    with torch.no_grad():
        made.codebook.copy_(centers + 1.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        latents = centers.repeat(25, 1) + 0.1 * torch.randn(100, 2, generator=generator)
        assert made.update(latents, made.nearest(latents), generator) == 0
    torch.testing.assert_close(made.codebook.detach(), centers, rtol=0, atol=0.1)


def test_gradient_learning_only_counts():
    made = quantizer(decay=0.5, dead_code_threshold=0.0)
    before = made.codebook.detach().clone()
    made.update(randn(10, 3), torch.zeros(10, dtype=torch.int64))
    assert torch.equal(made.codebook, before) and made.codebook.requires_grad
    torch.testing.assert_close(made.code_usage, torch.tensor([4.5] + [0.5] * 7))


# Restarts


def test_dead_entries_restart_at_latents_of_the_batch():
    made = quantizer(decay=0.5, dead_code_threshold=0.3)
    latents = randn(20, 3, seed=4)
    indices = torch.arange(20) % 4
    assert made.update(latents, indices, torch.Generator().manual_seed(0)) == 0, "half of the usage is left"
    before = made.codebook.detach().clone()
    assert made.update(latents, indices, torch.Generator().manual_seed(0)) == 4
    assert torch.equal(made.codebook[:4], before[:4])
    rows = [(latents == entry).all(1).nonzero().flatten().tolist() for entry in made.codebook[4:]]
    assert all(len(row) == 1 for row in rows) and len({row[0] for row in rows}) == 4, "without replacement"
    assert made.code_usage[4:].eq(1).all()
    assert made.update(latents, indices, torch.Generator().manual_seed(0)) == 0, "a restarted entry has time"


def test_restarts_depend_on_the_generator_alone():
    def restarted(seed):
        torch.manual_seed(torch.initial_seed() + 1)
        made = quantizer(decay=0.0, dead_code_threshold=0.3)
        made.update(randn(20, 3), torch.zeros(20, dtype=torch.int64), torch.Generator().manual_seed(seed))
        return made.codebook.detach()

    assert torch.equal(restarted(0), restarted(0)) and not torch.equal(restarted(0), restarted(1))


def test_dead_entries_restart_where_the_codebook_is_coarse():
    made = quantizer(decay=0.0, dead_code_threshold=0.3)
    entries = made.codebook.detach().clone()
    far = entries[0] + 100
    latents = torch.cat((entries[:1].expand(30, -1), entries[1:2] + 1e-3, far[None]))  # two differ from their entries
    indices = torch.tensor([0] * 30 + [1] + [0])
    assert made.update(latents, indices, torch.Generator().manual_seed(0)) == 2, "none goes to an entry that is there"
    assert sum(bool((entry == far).all()) for entry in made.codebook) == 1
    for seed in range(5):  # one dead entry: almost surely, it goes to the far latent
        made = quantizer(codes=3, decay=0.0, dead_code_threshold=0.3)
        entries = made.codebook.detach().clone()
        latents = torch.cat((entries[:1] + 100, entries[1:2] + 1e-3))
        assert made.update(latents, torch.tensor([0, 1]), torch.Generator().manual_seed(seed)) == 1
        assert torch.equal(made.codebook[2], latents[0])


def test_more_dead_entries_than_latents():
    made = quantizer(codes=50, decay=0.0, dead_code_threshold=0.3)
    generator = torch.Generator().manual_seed(0)
    assert made.update(randn(10, 3), torch.zeros(10, dtype=torch.int64), generator) == 10
    assert made.code_usage.eq(0).sum() == 39, "the rest waits"


def test_an_empty_batch_changes_nothing():
    made = quantizer(learning="ema")
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert made.update(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), torch.Generator()) == 0
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_restarts_need_a_generator():
    with pytest.raises(
        ValueError, match="`generator` must be a torch.Generator where `dead_code_threshold` is above 0"
    ):
        quantizer().update(randn(4, 3), torch.zeros(4, dtype=torch.int64))


# Several processes


def update_in_process(rank, folder, options):
    """One of two processes: three updates on its half of the latents. Rank 1 has more of them."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    made = quantizer(**options)
    generator = torch.Generator().manual_seed(5)
    restarted = []
    for step in range(3):
        latents, indices = batch(step)
        part = slice(0, 8) if rank == 0 else slice(8, None)
        restarted.append(made.update(latents[part], indices[part], generator))
    torch.save({"restarted": torch.tensor(restarted), **made.state_dict()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def batch(step):
    return randn(24, 3, seed=step), torch.randint(6, (24,), generator=torch.Generator().manual_seed(step))


@pytest.mark.slow
@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_two_processes_equal_one_with_all_latents(learning, tmp_path):
    options = {"learning": learning, "decay": 0.5, "dead_code_threshold": 0.4}
    torch.multiprocessing.spawn(update_in_process, (str(tmp_path), options), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["restarted"].tolist() == [0, 2, 0], "two entries are never used"
    assert (one["codebook"][6:, None] == batch(1)[0][8:]).all(-1).any(1).all(), "at latents of rank 1, which has most"
    alone = quantizer(**(options | {"dead_code_threshold": 0.0}))
    for step in range(3):
        alone.update(*batch(step))
    torch.testing.assert_close(one["codebook"][:6], alone.codebook[:6].detach())
    torch.testing.assert_close(one["code_usage"][:6], alone.code_usage[:6])
