"""Deterministic weights from (name, shape) alone: the same numbers everywhere."""

import zlib

import numpy as np
import torch


def seeded_tensor(name, shape, salt=0):
    rng = np.random.RandomState((zlib.crc32(name.encode()) ^ salt) & 0x7FFFFFFF)
    x = rng.standard_normal(int(np.prod(shape)) if len(shape) else 1).astype(np.float32).reshape(shape)
    if len(shape) == 1:
        x = 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
    elif "embed_tokens" in name or "embedding" in name:
        pass
    else:
        fan_in = int(np.prod(shape[1:]))
        gain = 3.0 if "lm_head" in name else 1.4
        x = x * np.float32(gain / np.sqrt(fan_in))
    return torch.from_numpy(x)


def fill(state_dict, salt=0, skip=()):
    out = {}
    for k, v in state_dict.items():
        if any(s in k for s in skip) or not v.dtype.is_floating_point:
            out[k] = v
        else:
            out[k] = seeded_tensor(k, tuple(v.shape), salt)
    return out
