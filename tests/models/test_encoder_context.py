"""Image tokenizers whose tokens depend on their own pixels alone."""

import pytest
import tiny
import torch

from showo_hf import ShowoLFQTokenizer, ShowoVQTokenizer


MAKERS = {"lfq": tiny.lfq, "vq": tiny.vq}
CELL, SIDE = tiny.FACTOR, tiny.SIDE


def pixels(seed=0, batch=2) -> torch.Tensor:
    return torch.rand(batch, 3, SIDE * CELL, SIDE * CELL, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("kind", MAKERS)
def test_a_token_depends_on_its_own_cell_alone(kind):
    tokenizer, images = MAKERS[kind](encoder_context=False), pixels()
    changed = images.clone()
    changed[:, :, CELL : 2 * CELL, 2 * CELL : 3 * CELL] *= -1
    with torch.no_grad():
        before, after = (tokenizer.encode(one).latents for one in (images, changed))
    differs = (before - after).abs().amax(1) > 1e-5
    expected = torch.zeros_like(differs)
    expected[:, 1, 2] = True
    assert torch.equal(differs, expected)
    with torch.no_grad():
        context = MAKERS[kind]()
        differs = (context.encode(images).latents - context.encode(changed).latents).abs().amax(1) > 1e-5
    assert differs.sum() > expected.sum()


@pytest.mark.parametrize("kind", MAKERS)
def test_equal_cells_have_equal_tokens(kind):
    tokenizer = MAKERS[kind](encoder_context=False)
    cell = pixels()[:1, :, :CELL, :CELL]
    first, second = pixels(1, 1), pixels(2, 1)
    first[..., :CELL, :CELL] = second[..., CELL : 2 * CELL, 2 * CELL : 3 * CELL] = cell
    with torch.no_grad():
        one, other = (tokenizer.encode(images).latents for images in (first, second))
    torch.testing.assert_close(one[..., 0, 0], other[..., 1, 2])
    assert tokenizer.encode(first).image_tokens[0, 0, 0] == tokenizer.encode(second).image_tokens[0, 1, 2]


@pytest.mark.parametrize("kind", MAKERS)
def test_the_rest_is_as_with_context(kind, tmp_path):
    tokenizer = MAKERS[kind](encoder_context=False)
    output = tokenizer(pixels(), return_losses=True)
    assert output.sample.shape == (2, 3, SIDE * CELL, SIDE * CELL)
    assert output.image_tokens.shape == (2, SIDE, SIDE)
    output.sample.square().mean().backward()
    assert all(weight.grad is not None for weight in tokenizer.encoder.parameters())
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert isinstance(again, ShowoLFQTokenizer | ShowoVQTokenizer) and not again.config.encoder_context
    assert torch.equal(again.encode(pixels()).image_tokens, tokenizer.encode(pixels()).image_tokens)


def test_cells_that_are_encoded_in_tiles_have_the_same_tokens():
    tokenizer, images = tiny.lfq(encoder_context=False), pixels()
    whole = tokenizer.encode(images).image_tokens
    tokenizer.enable_tiling(2 * CELL)
    assert torch.equal(tokenizer.encode(images).image_tokens, whole)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_cell_has_a_gradient_of_its_own(kind):
    """A fine-tuning for tokens that come back needs it."""
    tokenizer, images = MAKERS[kind](encoder_context=False).eval(), pixels()
    images[..., :CELL] = images[:1, :, :CELL, :CELL].repeat(1, 1, SIDE, 1)  # a column of equal cells
    expected = tokenizer.encode(images).latents
    latents = tokenizer.encode(images.requires_grad_()).latents
    torch.testing.assert_close(latents, expected)
    latents.square().sum().backward()
    cells = images.grad[..., :CELL].unflatten(2, (SIDE, CELL))  # (batch, 3, cells, rows, columns)
    assert images.grad.abs().amax((0, 1)).min() > 0
    torch.testing.assert_close(cells, cells[:1, :, :1].expand_as(cells))
