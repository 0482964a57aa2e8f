import torch
from hypothesis import given
from hypothesis import strategies as st

from showo_hf.training.masking import mask_tokens


@given(batch=st.integers(1, 5), tokens=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_only_masked_tokens_change(batch, tokens, seed):
    image_tokens = torch.arange(batch * tokens).view(batch, tokens)
    noised, masked = mask_tokens(image_tokens, -1, torch.Generator().manual_seed(seed))
    assert torch.equal(noised == -1, masked)
    assert torch.equal(noised[~masked], image_tokens[~masked])
    assert (masked.sum(-1) >= 1).all()


def test_the_mean_share_of_masked_tokens_follows_the_schedule():
    image_tokens = torch.zeros(4000, 100, dtype=torch.long)
    _, masked = mask_tokens(image_tokens, 1, torch.Generator().manual_seed(0))
    # The mean of cos(pi u / 2) over u in [0, 1] is 2 / pi.
    assert abs(masked.float().mean().item() - 2 / torch.pi) < 0.01


def test_the_same_generator_gives_the_same_masks():
    image_tokens = torch.arange(64).view(2, 32)
    one, other = (mask_tokens(image_tokens, -1, torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(one, other)
