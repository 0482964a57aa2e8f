"""The ONNX benchmark runs and prints one table. The tests do not check its measurements."""

import contextlib
import io

import onnx_t2i
import pytest
import tiny


@pytest.mark.slow  # two exports, and a process for each way
def test_it_prints_one_table(processor, tmp_path):
    tiny.pipeline(processor).save_pretrained(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.warns(UserWarning, match="was cut"):
        onnx_t2i.main(["--model", str(tmp_path), "--rounds", "1", "--repeats", "1", "--threads", "1"])
    heading, empty, *lines = printed.getvalue().strip().splitlines()
    assert heading.startswith("torch ") and "onnxruntime" in heading and empty == ""
    head, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head == ["measurement", "eager fp32", "ONNX fp32", "ONNX int8"]
    assert len(rows) == 8
    cells = {name: cells for name, *cells in rows}
    assert cells["most probable tokens equal to eager's, all steps"][1] == "100.0%"
    assert cells["time of an image / eager's"][0].startswith("1.00 (")
    missing = {name for name, cells in cells.items() if "not measured here" in cells}
    assert missing <= {"peak memory of the process / eager's"}  # without /proc


def test_the_size_of_packages_includes_dependencies():
    small, large = (onnx_t2i.installed_bytes(name) for name in ("numpy", "diffusers"))
    assert 1e6 < small < large
    assert onnx_t2i.installed_bytes("no-such-package-anywhere") == 0
