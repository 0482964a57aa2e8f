"""Whether the CPU has fast products in bfloat16."""

import platform

import pytest
import torch

from showo_hf.utils.cpu_features import computes_bfloat16


@pytest.mark.parametrize(
    ("machine", "capability", "fast"),
    [
        ("x86_64", "AVX2", False),
        ("AMD64", "DEFAULT", False),
        ("x86_64", "AVX512", True),
        ("arm64", "DEFAULT", True),
        ("aarch64", "SVE256", True),
    ],
)
def test_x86_needs_avx512(monkeypatch, machine, capability, fast):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert computes_bfloat16() is fast
