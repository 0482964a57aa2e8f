"""What this machine's CPU can do."""

import platform

import torch


def computes_bfloat16() -> bool:
    """
    Whether products in bfloat16 are fast on the CPU.

    An x86 CPU without AVX-512 has no instructions for them. PyTorch then takes up to 50 times as long as in float32.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
