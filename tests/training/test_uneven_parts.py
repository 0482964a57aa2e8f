"""Processes of one run that have different numbers of rows in a step."""

import parallel_run
import pytest
import small_run


@pytest.mark.slow
def test_a_broken_row_of_one_process_does_not_hold_up_the_other(tmp_path):
    """The process without a row has a gradient of the head too, for which the other one waits."""
    images = small_run.write_images(tmp_path / "images", 4)
    (images / "01.png").write_bytes(b"no image")  # in one of the first two steps
    options = {"data": str(images), "batch_size": 1, "steps": 3, "save_steps": 3, "ema_decay": None}
    children = parallel_run.start(2, lambda rank: small_run.run(tmp_path, **options), tmp_path / "errors")
    codes = parallel_run.wait(children, seconds=60)
    errors = "\n".join(child.errors.read_text() for child in children)
    assert codes == [0, 0], errors[-6000:]
    assert "left out" in errors
    assert [row["step"] for row in small_run.log_rows(tmp_path) if "loss" in row] == [1, 2, 3]
