"""The Trainer of image tokenizers against a plain loop."""

import image_tokenizer_training as benchmark
import pytest
import torch
from measuring import median_ratio


@pytest.mark.slow
@pytest.mark.parametrize("case", benchmark.CASES)
def test_the_plain_loop_has_the_same_losses(tmp_path, case):
    watch = benchmark.compare(tmp_path, case, size=16, rows=2, steps=3)
    assert len(watch.losses) == 3 and watch.losses[0][0] != watch.losses[2][0]
    for ours, plain in watch.losses:
        assert ours == pytest.approx(plain, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("case", benchmark.CASES)
def test_a_step_is_not_slower_than_a_plain_one(tmp_path, case):
    """The time of the main thread, with a tolerance for other work on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        watch = benchmark.compare(tmp_path, case, size=64, rows=4, steps=15)
    finally:
        torch.set_num_threads(threads)
    assert median_ratio(watch.times["trainer"][2:], watch.times["plain"][2:]) <= 1.15
