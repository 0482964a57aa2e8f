"""The benchmark of image tokenizers: its table, and the time and memory of quantization."""

import image_tokenizers
import pytest
import torch


@pytest.mark.slow
def test_the_table_has_a_row_for_each_number_of_channels(monkeypatch):
    monkeypatch.setattr(image_tokenizers, "CODES", 200)
    monkeypatch.setattr(image_tokenizers, "LATENTS", 100)
    rows = image_tokenizers.quantization("cpu", repeats=3)
    assert [row[0] for row in rows] == ["256", "8"]
    assert all(row[-1] == "1.0000" for row in rows), "both searches find the same codes"


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
        assert float(row[2]) <= 1.3, row
        product, nearest = (int(row[i].removesuffix(" MB")) for i in (4, 5))
        assert nearest < 0.2 * product, row
