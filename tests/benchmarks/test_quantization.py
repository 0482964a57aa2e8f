"""The quantization benchmark runs, and prints one table."""

import pytest


pytest.importorskip("torchao")

import quantization  # noqa: E402


@pytest.mark.slow
def test_it_prints_one_table(capsys):
    quantization.main(["--small", "--steps", "2", "--repeats", "1"])
    heading, empty, head, rule, *rows = capsys.readouterr().out.strip().splitlines()
    assert heading.startswith("torch ") and empty == "" and set(rule) == set("|- ")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells][:3] == ["fp32", "bf16", "int8 weights, fp32"]
    assert cells[0][2:5] == ["100.0%", "100.0%", "inf"]
    sizes = {row[0]: float(row[1]) for row in cells}
    assert sizes["int8 weights, bf16"] < sizes["bf16"] < sizes["fp32"]
