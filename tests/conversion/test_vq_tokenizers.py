"""Image tokenizers of diffusers and taming-transformers: the same codes and pixels after the conversion."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import VQModel
from golden.seeded_weights import seeded_tensor
from originals import TEXT_TOKENIZER, manifest, small_magvitv2, small_showo, write_original
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from showo_hf import ShowoLFQTokenizer, ShowoT2IPipeline, ShowoVQTokenizer, ShowoVQTokenizerConfig, cli
from showo_hf.conversion.checkpoint import Checkpoint
from showo_hf.conversion.convert_image_tokenizer import add_image_tokenizer, convert_image_tokenizer
from showo_hf.conversion.errors import ConversionError
from showo_hf.conversion.plan import ConversionPlan
from showo_hf.conversion.vq_tokenizers import infer_vq_config
from showo_hf.conversion.weight_names import diffusers_vq_name, is_attention_kernel, vqgan_name


CODES = 32
SMALL = {"num_vq_embeddings": CODES, "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
#: The architectures of the published models with fewer channels.
DIFFUSERS = {
    "kandinsky": {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        "norm_num_groups": 32,
        "layers_per_block": 2,
        "vq_embed_dim": 4,
        "norm_type": "spatial",
    },
    "amused": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "lookup_from_codebook": True,
        "mid_block_add_attention": False,
        "force_upcast": True,
    },
    "lumina": {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "latent_channels": 8,
        "vq_embed_dim": 6,
        "act_fn": "gelu",
    },
}


def pixels(height=16, width=24, batch=2, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def vq_model(kind: str) -> VQModel:
    """A `VQModel` with random weights. Its codes are latents of other images, so that images use many codes."""
    torch.manual_seed(0)
    model = VQModel(**(SMALL | DIFFUSERS[kind])).eval()
    latents = model.encode(pixels(24, 24, seed=1)).latents.movedim(1, -1).flatten(0, 2)
    model.quantize.embedding.weight.copy_(latents[:CODES])
    return model


# diffusers


@pytest.mark.parametrize("kind", DIFFUSERS)
@torch.no_grad()
def test_a_vq_model_of_diffusers_gives_the_same_codes_and_pixels(kind, tmp_path, capsys):
    reference = vq_model(kind)
    reference.save_pretrained(tmp_path / "source")
    source = ["--image-tokenizer", str(tmp_path / "source"), "--image-size", "16"]
    assert cli.main(["convert", *source, "--output", str(tmp_path / "out"), "--verify"]) == 0
    assert "largest differences from the source" in capsys.readouterr().err
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert type(model) is ShowoVQTokenizer and model.config.sample_size == 16
    ours, latents = model.encode(pixels()), reference.encode(pixels()).latents
    torch.testing.assert_close(ours.latents, latents, rtol=0, atol=1e-5)
    _, _, (_, _, expected) = reference.quantize(latents)
    assert torch.equal(ours.image_tokens.flatten(), expected) and len(expected.unique()) > 5
    decoded = reference.decode(latents).sample
    torch.testing.assert_close(model(pixels()).sample, decoded, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.decode(ours.image_tokens).sample, decoded.clamp(-1, 1), rtol=0, atol=1e-4)


def test_old_names_of_attention_are_understood(tmp_path):
    vq_model("lumina").save_pretrained(tmp_path / "new")
    convert_image_tokenizer(tmp_path / "new", tmp_path / "a")
    weights = load_file(tmp_path / "new" / "diffusion_pytorch_model.safetensors")
    turns = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    old = {}
    for name, weight in weights.items():
        for new, before in turns.items():
            name = name.replace(new, before)
        old[name] = weight
    assert old.keys() != weights.keys()
    write_original(tmp_path / "old", old, json.loads((tmp_path / "new" / "config.json").read_text()))
    convert_image_tokenizer(tmp_path / "old", tmp_path / "b")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"out_channels": 4}, "`out_channels` .4. must equal `in_channels` .3."),
        ({"down_block_types": ["DownBlock2D"] * 2}, "`down_block_types` must be of .*, got DownBlock2D"),
        ({"act_fn": "tanh"}, "the image tokenizer cannot be converted: `act_fn` must be"),
        ({"num_vq_embeddings": 33}, r"wrong shape: quantize.embedding.weight \[32, 6\], must be \[33, 6\]"),
        ({"layers_per_block": 2}, "missing: decoder.up_blocks.0.attentions.2"),
        ({"layers_per_block": "2"}, "`layers_per_block` in config.json must be a positive integer, got '2'"),
        ({"vq_embed_dim": "6"}, "`vq_embed_dim` in config.json must be a positive integer"),
        ({"block_out_channels": 8}, "`block_out_channels` in config.json must be a list, got 8"),
        ({"block_out_channels": [8, "16"]}, "cannot be converted: `encoder_block_out_channels`"),
        ({"up_block_types": None}, "`up_block_types` in config.json must be a list, got None"),
        ({"mid_block_add_attention": "yes"}, "cannot be converted: `mid_block_attention`"),
    ],
)
def test_other_vq_models_are_refused(changed, message, tmp_path):
    vq_model("lumina").save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ConversionError, match=message):
        convert_image_tokenizer(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vq_model_without_a_codebook_is_refused(tmp_path):
    vq_model("lumina").save_pretrained(tmp_path / "source")
    (file,) = (tmp_path / "source").glob("*.safetensors")
    save_file({name: weight for name, weight in load_file(file).items() if "quantize.embedding" not in name}, file)
    with pytest.raises(ConversionError, match="the weights lack `quantize.embedding.weight`"):
        convert_image_tokenizer(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_error_for_a_vq_model_names_the_command(tmp_path):
    vq_model("lumina").save_pretrained(tmp_path)
    command = f"a VQModel of diffusers. Convert it first: showo-hf convert --image-tokenizer {tmp_path} --output"
    with pytest.raises(ValueError, match=command):
        ShowoVQTokenizer.from_pretrained(tmp_path)


# taming-transformers


def small_vqgan(codes=CODES) -> dict[str, torch.Tensor]:
    """A VQGAN with the names of the published one, few channels, and codes of 6 numbers."""
    channels = {128: 32, 256: 64, 512: 96}
    weights = {}
    for name, shape in manifest("vqgan_imagenet_f16_16384").items():
        shape = [channels.get(size, size) for size in shape]
        weights[name] = seeded_tensor(name, tuple(shape))
    z, dim = channels[256], 6
    weights["quantize.embedding.weight"] = 0.3 * seeded_tensor("codes", (codes, dim))
    weights["quant_conv.weight"] = seeded_tensor("quant_conv.weight", (dim, z, 1, 1))
    weights["quant_conv.bias"] = seeded_tensor("quant_conv.bias", (dim,))
    weights["post_quant_conv.weight"] = seeded_tensor("post_quant_conv.weight", (z, dim, 1, 1))
    return weights


def test_the_published_vqgan_is_the_default_config():
    original = manifest("vqgan_imagenet_f16_16384")
    ours = {vqgan_name(name): shape[:2] if is_attention_kernel(name) else shape for name, shape in original.items()}
    assert len(ours) == len(original)
    with torch.device("meta"):
        model = ShowoVQTokenizer(ShowoVQTokenizerConfig())
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    assert shapes == {**ours, "quantizer.code_usage": [16384]}


def test_the_config_of_the_published_vqgan_comes_from_its_shapes(tmp_path):
    """On tensors without content, as a file of the published size would be large."""

    class Shapes(Checkpoint):
        config: dict = {}
        locations = manifest("vqgan_imagenet_f16_16384")

        def __init__(self):
            pass

        def shape(self, name):
            return tuple(self.locations[name])

        def dtype(self, name):
            return torch.float32

    config = infer_vq_config(Shapes())
    found, expected = config.to_dict(), ShowoVQTokenizerConfig().to_dict()
    assert {name: found[name] for name in expected} == expected
    plan = ConversionPlan()
    add_image_tokenizer(plan, Shapes(), config)
    with torch.device("meta"):
        plan.check(ShowoVQTokenizer(config))


@torch.no_grad()
def test_a_vqgan_is_converted_and_verified(tmp_path, capsys):
    losses = {"loss.discriminator.main.0.weight": torch.zeros(2, 2), "loss.logvar": torch.zeros(1)}
    (tmp_path / "source").mkdir()
    save_file(small_vqgan() | losses, tmp_path / "source" / "model.safetensors")
    source = ["--image-tokenizer", str(tmp_path / "source")]
    assert cli.main(["convert", *source, "--output", str(tmp_path / "out"), "--verify"]) == 0
    report = capsys.readouterr().err
    assert "2 dropped (losses of the tokenizer's training)" in report and "largest differences" in report
    model = ShowoVQTokenizer.from_pretrained(tmp_path / "out")
    assert (model.config.downsampling, model.config.codebook_size, model.config.codebook_dim) == (16, CODES, 6)
    assert model.quantizer.code_usage.eq(1).all()
    assert model.encode(pixels(32, 48)).image_tokens.shape == (2, 2, 3)


def test_a_mistake_in_the_weights_is_found_by_verification(tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    save_file(small_vqgan(), tmp_path / "source" / "model.safetensors")

    def wrong_name(name, stages=5):
        return vqgan_name(name.replace(".q.", ".SWAP.").replace(".v.", ".q.").replace(".SWAP.", ".v."), stages)

    monkeypatch.setattr("showo_hf.conversion.vq_tokenizers.vqgan_name", wrong_name)
    with pytest.raises(ConversionError, match="differs from the source"):
        convert_image_tokenizer(tmp_path / "source", tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


def test_a_gumbel_vqgan_is_refused(tmp_path):
    weights = small_vqgan()
    del weights["quantize.embedding.weight"]
    weights |= {"quantize.embed.weight": torch.zeros(4, 6), "quantize.proj.weight": torch.zeros(4, 64, 1, 1)}
    write_original(tmp_path / "source", weights, None)
    with pytest.raises(ConversionError, match="Gumbel quantizer"):
        convert_image_tokenizer(tmp_path / "source", tmp_path / "out")


@pytest.fixture
def lightning(monkeypatch):
    """Stands for pytorch-lightning, which is not installed: the class whose objects its checkpoints name."""
    parts = "pytorch_lightning.callbacks.model_checkpoint".split(".")
    modules = {".".join(parts[: count + 1]): ModuleType(parts[count]) for count in range(3)}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(modules[".".join(parts)], "ModelCheckpoint", ModelCheckpoint, raising=False)
    monkeypatch.setattr(ModelCheckpoint, "__module__", ".".join(parts))


class ModelCheckpoint:
    pass


def lightning_checkpoint(callbacks: dict) -> dict:
    """What pytorch-lightning saves of a training of a VQGAN."""
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.0.8",
        "state_dict": small_vqgan() | {"loss.logvar": torch.zeros(1)},
        "callbacks": callbacks,
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 4.5e-6}]}],
        "lr_schedulers": [],
    }


def test_a_checkpoint_of_lightning_without_its_objects_is_converted(tmp_path):
    torch.save(lightning_checkpoint({}), tmp_path / "last.ckpt")
    convert_image_tokenizer(tmp_path / "last.ckpt", tmp_path / "out")
    assert ShowoVQTokenizer.from_pretrained(tmp_path / "out").config.codebook_size == CODES


def test_a_checkpoint_with_objects_of_lightning_is_refused_until_its_weights_are_saved_alone(
    lightning, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.save(lightning_checkpoint({ModelCheckpoint: {"best_model_score": None}}), "last.ckpt")
    named = "the name pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    with pytest.raises(ConversionError, match=f"'last.ckpt' was refused: .*Nothing in it was run. Found: .*{named}"):
        convert_image_tokenizer("last.ckpt", "out")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    guide = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text(encoding="utf-8")
    exec(re.search(r'python -c "(.*vqgan\.ckpt.*)"', guide)[1])
    convert_image_tokenizer("vqgan.ckpt", "out")
    assert ShowoVQTokenizer.from_pretrained("out").config.codebook_size == CODES


@pytest.mark.parametrize(
    "original, ours",
    [
        ("encoder.down.4.attn.1.proj_out.weight", "encoder.down_blocks.4.attentions.1.to_out.0.weight"),
        ("decoder.up.4.attn.2.norm.bias", "decoder.up_blocks.0.attentions.2.group_norm.bias"),
        ("decoder.up.0.block.1.conv1.weight", "decoder.up_blocks.4.resnets.1.conv1.weight"),
        ("encoder.mid.attn_1.q.weight", "encoder.mid_block.attentions.0.to_q.weight"),
        ("quantize.embedding.weight", "quantizer.codebook"),
        ("post_quant_conv.bias", "post_quant_conv.bias"),
    ],
)
def test_names_of_a_vqgan(original, ours):
    assert vqgan_name(original) == ours


def test_names_of_diffusers_stay():
    assert diffusers_vq_name("encoder.mid_block.attentions.0.to_q.weight").endswith("attentions.0.to_q.weight")
    assert diffusers_vq_name("encoder.mid_block.attentions.0.proj_attn.bias").endswith("attentions.0.to_out.0.bias")


# The command


def test_magvit_is_still_recognized(tmp_path):
    write_original(tmp_path / "source", small_magvitv2(), None)
    convert_image_tokenizer(tmp_path / "source", tmp_path / "out", verify=True)
    assert type(AutoModel.from_pretrained(tmp_path / "out")) is ShowoLFQTokenizer


def test_a_show_o_with_a_vq_tokenizer(tmp_path, capsys):
    weights, config = small_showo(codes=CODES)
    write_original(tmp_path / "showo", weights, config)
    vq_model("kandinsky").save_pretrained(tmp_path / "vq")
    sources = ["--showo", str(tmp_path / "showo"), "--image-tokenizer", str(tmp_path / "vq")]
    sources += ["--text-tokenizer", str(TEXT_TOKENIZER)]
    assert cli.main(["convert", *sources, "--output", str(tmp_path / "out"), "--verify"]) == 0
    pipe = ShowoT2IPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.image_tokenizer) is ShowoVQTokenizer
    image = pipe("a red apple", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (8, 8)
    assert cli.main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "back")]) == 1
    assert "only supports the MAGVIT-v2 image tokenizer, got 'showo_vq'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--showo", "absent"], "`--showo` needs `--text-tokenizer`"),
        (["--text-tokenizer", "absent", "--with-code"], "`--text-tokenizer`, `--with-code` needs `--showo`"),
        (["--showo", "a", "--text-tokenizer", "b", "--image-size", "64"], "`--image-size` is for an image tokenizer"),
    ],
)
def test_options_that_do_not_fit_are_refused(more, message, tmp_path, capsys):
    command = ["convert", "--image-tokenizer", "absent", "--output", str(tmp_path / "out"), *more]
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err
