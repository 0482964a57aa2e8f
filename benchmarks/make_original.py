"""Make a checkpoint of any size in the original Show-o format from seeded random numbers. Run as

    python benchmarks/make_original.py --output full-size                      # 1.45 billion parameters, 5.8 GB
    python benchmarks/make_original.py --output small --hidden 128 --layers 4 --intermediate 256

The folder contains `showo/` and `magvitv2/`, with the names and shapes of the repositories on the Hub.
"""

import argparse
import json
import zlib
from pathlib import Path

import torch

from showo_hf.conversion.export_showo import CONFIG_DEFAULTS, IMAGE_TOKENIZER_CONFIG, quantizer_constants, split_names
from showo_hf.conversion.shards import write_shards
from showo_hf.conversion.weight_names import is_attention_kernel
from showo_hf.models.configuration_showo import ShowoConfig
from showo_hf.models.modeling_showo import ShowoForCausalLM


FORMATS = ("safetensors", "bin", "sharded safetensors", "sharded bin")
TOKENIZER_BITS = 13


def config_of(hidden: int, layers: int, intermediate: int, head_dim: int = 64) -> ShowoConfig:
    """A model with the published vocabulary and the published image tokenizer."""
    return ShowoConfig(
        text_config={
            "model_type": "phi",
            "vocab_size": 58498,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "intermediate_size": intermediate,
            "num_attention_heads": hidden // head_dim,
            "qk_layernorm": True,
        },
        image_tokenizer_config={},
    )


def original_layout(config: ShowoConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Meta tensors of the original's transformer and of its image tokenizer, by name."""
    with torch.device("meta"):
        state = ShowoForCausalLM(config).state_dict()
    showo, tokenizer, _ = split_names(state, config)

    def layout(names: dict[str, str]) -> dict[str, torch.Tensor]:
        found = {}
        for original, ours in names.items():
            tensor = state[ours]
            found[original] = tensor[:, :, None, None] if is_attention_kernel(original) else tensor
        return found

    return layout(showo), layout(tokenizer)


def seeded(name: str, spec: torch.Tensor) -> torch.Tensor:
    """Random numbers that depend only on the name, and are small enough for a deep network."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if len(spec.shape) == 1:
        return torch.full(spec.shape, 1.0 if name.endswith("weight") else 0.0)
    fan_in = torch.Size(spec.shape[1:]).numel()
    return torch.empty(spec.shape).uniform_(-1, 1, generator=generator).mul_(fan_in**-0.5)


def write(folder: Path, layout: dict[str, torch.Tensor], config: dict, form: str, constants: dict[str, torch.Tensor]):
    """Write one original model in a form of `FORMATS`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    layout = layout | constants

    def read(name: str) -> torch.Tensor:
        return constants[name] if name in constants else seeded(name, layout[name])

    size = "2GB" if "sharded" in form else "1TB"
    if "bin" not in form:
        write_shards(folder, layout, read, size, stem="pytorch_model")
        return
    parts: list[dict[str, torch.Tensor]] = [{}]
    for name, spec in layout.items():
        if "sharded" in form and sum(t.nbytes for t in parts[-1].values()) + spec.nbytes > 2e9:
            parts.append({})
        parts[-1][name] = read(name)
    if len(parts) == 1:
        torch.save(parts[0], folder / "pytorch_model.bin")
        return
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = f"pytorch_model-{number:05}-of-{len(parts):05}.bin"
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def make_original(output: Path, config: ShowoConfig, form: str = "safetensors"):
    """Write `output/showo` and `output/magvitv2`."""
    showo, tokenizer = original_layout(config)
    sizes = {"vocab_size": config.vocab_size, "llm_vocab_size": 50295, "codebook_size": 8192, "num_vq_tokens": 256}
    write(output / "showo", showo, CONFIG_DEFAULTS | sizes | {"w_clip_vit": False}, form, {})
    constants = quantizer_constants(TOKENIZER_BITS)
    write(output / "magvitv2", tokenizer, IMAGE_TOKENIZER_CONFIG, form.removeprefix("sharded "), constants)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("--form", choices=FORMATS, default="safetensors")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--intermediate", type=int, default=8192)
    options = parser.parse_args()
    config = config_of(options.hidden, options.layers, options.intermediate)
    make_original(Path(options.output), config, options.form)


if __name__ == "__main__":
    main()
