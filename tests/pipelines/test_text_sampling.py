"""Sampling text with a generator."""

import pytest
import tiny
import torch

from showo_hf.pipelines.text_sampling import GeneratorSampling, TextOnly, warpers


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -30.0]])


def sample_ids(count: int, **options) -> torch.Tensor:
    sampling = GeneratorSampling(torch.Generator().manual_seed(0), **options)
    return sampling(torch.zeros(count, 1).long(), LOGITS.expand(count, -1)).argmax(-1)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_ids_are_sampled_with_their_probability(temperature):
    counts = sample_ids(20_000, temperature=temperature).bincount(minlength=5)
    p = (LOGITS[0] / temperature).softmax(-1)
    deviation = (20_000 * p * (1 - p)).sqrt()  # of a binomial distribution
    assert ((counts - 20_000 * p).abs() < 4 * deviation + 1e-3).all()


def test_top_k_and_top_p_exclude_other_ids():
    assert set(sample_ids(2000, top_k=2).tolist()) == {0, 1}
    assert set(sample_ids(2000, top_p=0.6).tolist()) == {0}
    assert len(warpers()) == 0


def test_rows_with_their_own_generators_are_independent():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]

    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(3, 1).long()
    together = GeneratorSampling(generators())(ids, logits)
    alone = [GeneratorSampling([one])(ids[:1], logits[i : i + 1]) for i, one in enumerate(generators())]
    assert torch.equal(together, torch.cat(alone))


def test_text_only_keeps_only_text_ids():
    processor = tiny.processor()
    vocab_size = processor.mask_token_id + 1
    logits = TextOnly(processor)(torch.zeros(2, 1).long(), torch.zeros(2, vocab_size))
    text_ids = (logits[0] == 0).nonzero().flatten().tolist()
    assert text_ids == list(range(processor.pad_token_id))  # includes the end of text, id 0
    assert torch.equal(logits[0], logits[1]) and processor.eot_token_id == 0
