"""The speed benchmark runs, and prints one table. Its numbers are not tested."""

import contextlib
import io
import mmap

import measuring
import pytest
import t2i
import torch


def run_benchmark(*arguments: str) -> list[list[str]]:
    """The rows of the table that the small benchmark prints, with the header."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        t2i.main(["--small", "--repeats", "1", *arguments])
    heading, empty, head, rule, *rows = printed.getvalue().strip().splitlines()
    assert heading.startswith("torch ") and empty == ""
    assert set(rule) == set("|- ")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]


@pytest.mark.slow  # starts two processes to measure the memory
def test_it_prints_one_table():
    head, *rows = run_benchmark()
    assert head == ["measure", "device", "measured", "target"]
    assert len({what for what, *_ in rows}) == len(rows) == 12
    assert {device for _, device, _, _ in rows} == {"cpu"}
    assert all(any(letter.isdigit() for letter in measured) for _, _, measured, _ in rows), rows


@pytest.mark.slow
def test_the_pipeline_and_the_plain_loop_give_equal_tokens():
    (first, *others) = t2i.speed_rows(t2i.SMALL, "cpu", repeats=1)
    assert first == ("tokens equal to the plain loop's", "100%", "100%")
    assert [wanted for _, _, wanted in others] == ["at least 2.1", "at least 65%", "at least 5"]


def test_inpainted_tokens_are_equal_with_and_without_no_op_steps():
    time, tokens = t2i.inpainting_rows(t2i.SMALL, "cpu", repeats=1, masked=2)
    assert time[2] == "at most 0.7" and tokens[1:] == ("100%", "100%")


def test_the_other_rows():
    names = [what for what, *_ in t2i.tokenizer_rows(t2i.SMALL, "cpu", repeats=1)]
    assert names == [f"image tokenizer, {way} at 16 px: fp32 time / bf16" for way in ("encode", "decode")]
    names = [what for what, *_ in t2i.growth_rows(t2i.SMALL, "cpu")]
    assert names == ["a step at 16 tokens", "a step at 64 tokens / at 16"]


def test_memory_is_not_measured_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "PROCESS", tmp_path)
    assert [measured for _, measured, _ in t2i.memory_rows("cpu", [])] == ["not measured here"] * 2


@pytest.mark.skipif(not measuring.can_measure_memory("cpu"), reason="needs Linux's /proc")
def test_peak_memory_of_a_call():
    megabytes = 50
    held = bytearray(megabytes * 2**20)  # in use before the call

    def touch():
        with mmap.mmap(-1, megabytes * 2**20) as pages:
            pages[:: mmap.PAGESIZE] = b"1" * (len(pages) // mmap.PAGESIZE)

    found = measuring.peak_memory_of(touch)
    assert megabytes * 2**20 * 0.9 < found["peak"] - found["before"] < 2 * megabytes * 2**20
    assert found["before"] >= len(held)


@pytest.mark.skipif(not measuring.can_measure_memory("cpu"), reason="needs Linux's /proc")
def test_peak_memory_includes_memory_that_the_allocator_reuses():
    blocks, size = 1000, 40_000  # small blocks are on the heap; keeping the last one stops the heap from shrinking

    def allocate():
        return [torch.ones(size // 4) for _ in range(blocks)]

    last = allocate()[-1]
    found = measuring.peak_memory_of(allocate)
    assert found["peak"] - found["before"] > blocks * size * 0.9
    assert last.numel() == size // 4


@pytest.mark.gpu
def test_it_runs_on_a_gpu():
    _, *rows = run_benchmark("--device", "cuda")
    assert {device for _, device, _, _ in rows} == {"cuda"}
    assert not any(measured == "not measured here" for _, _, measured, _ in rows)
