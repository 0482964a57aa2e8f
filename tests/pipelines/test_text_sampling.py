"""Text sampled with a generator."""

import pytest
import tiny
import torch

from showo_hf.pipelines.text_sampling import GeneratorSampling, TextOnly, warpers


SCORES = torch.tensor([[2.0, 1.0, 0.0, -1.0, -30.0]])


def draws(count: int, **options) -> torch.Tensor:
    sampling = GeneratorSampling(torch.Generator().manual_seed(0), **options)
    return sampling(torch.zeros(count, 1).long(), SCORES.expand(count, -1)).argmax(-1)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_ids_are_drawn_as_often_as_their_probability(temperature):
    counts = draws(20_000, temperature=temperature).bincount(minlength=5)
    p = (SCORES[0] / temperature).softmax(-1)
    deviation = (20_000 * p * (1 - p)).sqrt()  # of a binomial count
    assert ((counts - 20_000 * p).abs() < 4 * deviation + 1e-3).all()


def test_top_k_and_top_p_leave_out_the_rest():
    assert set(draws(2000, top_k=2).tolist()) == {0, 1}
    assert set(draws(2000, top_p=0.6).tolist()) == {0}
    assert len(warpers()) == 0


def test_a_row_s_own_generator_makes_it_independent_of_the_others():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]

    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(3, 1).long()
    together = GeneratorSampling(generators())(ids, scores)
    alone = [GeneratorSampling([one])(ids[:1], scores[i : i + 1]) for i, one in enumerate(generators())]
    assert torch.equal(together, torch.cat(alone))


def test_words_alone_are_left():
    processor = tiny.processor()
    vocab_size = processor.mask_token_id + 1
    left = TextOnly(processor)(torch.zeros(2, 1).long(), torch.zeros(2, vocab_size))
    words = (left[0] == 0).nonzero().flatten().tolist()
    assert words == list(range(processor.pad_token_id))  # the end of text, id 0, among them
    assert torch.equal(left[0], left[1]) and processor.eot_token_id == 0
