"""The benchmark of image tokenizers: its table, and the time and memory of quantization."""

import image_tokenizers
import pytest
import torch

from showo_hf.models.vector_quantizer import VectorQuantizer


@pytest.mark.slow
def test_the_table_has_a_row_for_each_number_of_channels(monkeypatch):
    monkeypatch.setattr(image_tokenizers, "CODES", 200)
    monkeypatch.setattr(image_tokenizers, "LATENTS", 100)
    rows = image_tokenizers.quantization("cpu", repeats=3)
    assert [row[0] for row in rows] == ["256", "8"]
    for row in rows:
        cells = dict(zip(image_tokenizers.HEADER, row, strict=True))
        assert cells["same codes"] == "1.0000", "both searches find the same codes"
        assert float(cells["step / product, out"]) > float(cells["nearest / product, out"]) > 0


def test_a_step_searches_and_moves_the_codes():
    generator = torch.Generator().manual_seed(0)
    quantizer = VectorQuantizer(20, 4, learning="ema")
    with torch.no_grad():
        quantizer.codebook.copy_(torch.randn(20, 4, generator=generator))
    before, latents = quantizer.codebook.clone(), torch.randn(200, 4, generator=generator)
    used = torch.bincount(quantizer.nearest(latents), minlength=20) > 0
    image_tokenizers.training_step(quantizer, latents)
    moved = (quantizer.codebook != before).any(1)
    assert torch.equal(moved, used) and used.sum() > 10
    assert not torch.equal(quantizer.code_usage, torch.ones(20))


@pytest.mark.slow
def test_the_search_costs_about_one_matrix_product():
    """The CPU time of one thread; the memory is a fifth of the table's at most."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = image_tokenizers.quantization("cpu", repeats=9)
    finally:
        torch.set_num_threads(threads)
    for row in rows:
        cells = dict(zip(image_tokenizers.HEADER, row, strict=True))
        assert float(cells["nearest / product"]) <= 1.3, row
        product, nearest = (int(cells[f"memory: {name}"].removesuffix(" MB")) for name in ("product", "nearest"))
        assert nearest < 0.2 * product, row
