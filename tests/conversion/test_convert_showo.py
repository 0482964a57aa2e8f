"""The conversion commands: their output, and the recorded numbers of the original."""

import json

import originals
import pytest
import torch
from originals import FORMATS, TEXT_TOKENIZER, small_magvitv2, small_showo, write_original
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from showo_hf import ShowoConfig, ShowoForCausalLM, ShowoLFQTokenizer, ShowoProcessor, ShowoT2IPipeline, cli
from showo_hf.conversion import convert_magvitv2, export_showo
from showo_hf.conversion.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with a small original checkpoint and image tokenizer."""
    root = tmp_path_factory.mktemp("originals")
    weights, config = small_showo()
    write_original(root / "showo", weights, config)
    write_original(root / "magvitv2", small_magvitv2(), {"_class_name": "MAGVITv2"})
    return root


def arguments(root, output, *more, showo="showo"):
    return [
        *("--showo", str(root / showo), "--image-tokenizer", str(root / "magvitv2")),
        *("--text-tokenizer", str(TEXT_TOKENIZER), "--output", str(output), *more),
    ]


def convert(root, output, *more, showo="showo"):
    return cli.main(["convert", *arguments(root, output, *more, showo=showo)])


@pytest.fixture(scope="module")
def converted(sources, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "show-o"
    assert convert(sources, output, "--verify") == 0
    return output


def test_a_converted_folder_can_be_loaded(converted):
    pipe = ShowoT2IPipeline.from_pretrained(converted)
    image = pipe("a red apple", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (4, 4)
    folder = converted / "model"
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), ShowoForCausalLM)
    assert isinstance(AutoProcessor.from_pretrained(folder), ShowoProcessor)
    assert AutoConfig.from_pretrained(folder).num_image_tokens == 4
    assert (converted / "README.md").is_file()


def lasting(config: dict) -> dict:
    """A config without the entries that depend on its history."""
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "dtype")}


def test_a_converted_folder_equals_the_output_of_save_pretrained(converted, tmp_path):
    ShowoT2IPipeline.from_pretrained(converted).save_pretrained(tmp_path)
    ours = {path.relative_to(converted) for path in converted.rglob("*.json")}
    assert ours == {path.relative_to(tmp_path) for path in tmp_path.rglob("*.json")}
    for name in ours:
        one, other = (json.loads((root / name).read_text(), object_hook=lasting) for root in (converted, tmp_path))
        assert one == other, name
    one, other = (load_file(root / "model" / "model.safetensors") for root in (converted, tmp_path))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_image_tokenizer_alone(sources, tmp_path, capsys):
    output = tmp_path / "tokenizer"
    source = ["--image-tokenizer", str(sources / "magvitv2")]
    assert convert_magvitv2.main([*source, "--output", str(output), "--verify"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(output) and "largest differences" in printed.err
    assert "2 dropped (constants of the quantizer)" in printed.err
    model = AutoModel.from_pretrained(output)
    assert isinstance(model, ShowoLFQTokenizer) and model.config.downsampling == 2


def test_the_published_checkpoints_of_512_pixels(tmp_path, capsys):
    """An image has 1024 tokens by the config or by the option, and 256 tokens by default."""
    weights, config = small_showo()
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    write_original(tmp_path / "showo", weights, config | {"num_vq_tokens": 1024})
    assert convert(tmp_path, tmp_path / "named") == 0
    assert "images of 1024 tokens, 64 x 64 pixels\n" in capsys.readouterr().err
    pipe = ShowoT2IPipeline.from_pretrained(tmp_path / "named")
    assert pipe.default_grid == (32, 32) and pipe.image_tokenizer.config.sample_size == 64
    assert pipe.processor.num_image_tokens == 1024
    assert pipe.processor.image_processor.crop_size == {"height": 64, "width": 64}
    del config["num_vq_tokens"]
    write_original(tmp_path / "silent", weights, config)
    for more, tokens in ((["--num-image-tokens", "1024"], 1024), ([], 256)):
        assert convert(tmp_path, tmp_path / f"of-{tokens}", *more, showo="silent") == 0
        assert f"of {tokens} tokens" in (report := capsys.readouterr().err) and "does not say" in report
        assert ShowoConfig.from_pretrained(tmp_path / f"of-{tokens}" / "model").num_image_tokens == tokens


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_of_checkpoint_gives_the_same_weights(sources, converted, tmp_path, form):
    weights, config = small_showo()
    write_original(tmp_path / "showo", weights, config, form)
    assert len(Checkpoint(tmp_path / "showo").files) == (3 if "sharded" in form else 1)
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    assert convert(tmp_path, tmp_path / "out") == 0
    one, other = (load_file(root / "model" / "model.safetensors") for root in (converted, tmp_path / "out"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_dtype_and_shards(sources, tmp_path):
    assert convert(sources, tmp_path / "out", "--dtype", "bfloat16", "--max-shard-size", "500KB", "--verify") == 0
    folder = tmp_path / "out" / "model"
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1 and (folder / "model.safetensors.index.json").is_file()
    assert all(tensor.dtype == torch.bfloat16 for shard in shards for tensor in load_file(shard).values())
    assert ShowoForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_the_clip_variant_with_and_without_tower(sources, tmp_path):
    weights, config = small_showo(feature_size=24)
    write_original(tmp_path / "showo", weights, config)
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    assert convert(tmp_path, tmp_path / "alone", "--verify") == 0
    alone = ShowoForCausalLM.from_pretrained(tmp_path / "alone" / "model")
    assert alone.vision_tower is None and alone.config.image_feature_size == 24
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    tower = CLIPVisionModel(vision)
    tower.save_pretrained(tmp_path / "clip")
    assert convert(tmp_path, tmp_path / "whole", "--clip-vision", str(tmp_path / "clip")) == 0
    whole = ShowoForCausalLM.from_pretrained(tmp_path / "whole" / "model")
    for name, tensor in tower.state_dict().items():
        assert torch.equal(tensor, whole.vision_tower.state_dict()[name])
    processor = ShowoProcessor.from_pretrained(tmp_path / "whole" / "model")
    assert processor.num_image_features == 4
    assert processor.vision_processor.crop_size == {"height": 8, "width": 8}
    assert cli.main(["export", str(tmp_path / "whole"), "--output", str(tmp_path / "back")]) == 0
    assert load_file(tmp_path / "back" / "showo" / "pytorch_model.safetensors").keys() == weights.keys()


@pytest.mark.parametrize(
    "load, part",
    [
        (ShowoT2IPipeline.from_pretrained, "showo"),
        (ShowoForCausalLM.from_pretrained, "showo"),
        (ShowoConfig.from_pretrained, "showo"),
        (ShowoLFQTokenizer.from_pretrained, "magvitv2"),
    ],
)
def test_the_error_for_an_original_checkpoint_names_the_command(sources, load, part):
    option = {"showo": "showo-hf convert --showo", "magvitv2": "convert_magvitv2 --image-tokenizer"}[part]
    with pytest.raises(ValueError, match=f"original Show-o code. Convert it first: .*{option} {sources / part}"):
        load(sources / part)


def test_a_folder_without_a_model_has_the_usual_error(tmp_path):
    with pytest.raises(OSError, match="model_index.json"):
        ShowoT2IPipeline.from_pretrained(tmp_path)


def test_the_tower_of_a_complete_clip(tmp_path, capsys):
    """Like `openai/clip-vit-large-patch14-336`: text and vision in one pickle, with a preprocessor config."""
    weights, config = small_showo(feature_size=24)
    write_original(tmp_path / "showo", weights, config)
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    sizes = {"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPModel(
        CLIPConfig(text_config={**sizes, "vocab_size": 99}, vision_config={**sizes, "image_size": 8, "patch_size": 4})
    )
    (tmp_path / "clip").mkdir()
    state = clip.state_dict() | {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    torch.save(state, tmp_path / "clip" / "pytorch_model.bin")
    clip.config.save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil(crop_size=8, size=8, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "clip")
    assert convert(tmp_path, tmp_path / "out", "--clip-vision", str(tmp_path / "clip"), "--verify") == 0
    report = capsys.readouterr().err
    assert "(the text half of CLIP)" in report and "tower 0.00e+00" in report
    model = ShowoForCausalLM.from_pretrained(tmp_path / "out" / "model")
    pixels = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(model.get_image_features(pixels).last_hidden_state, expected)
    processor = ShowoProcessor.from_pretrained(tmp_path / "out" / "model")
    assert list(processor.vision_processor.image_mean) == [0.1, 0.2, 0.3]


def test_the_quantizer_s_constants_equal_the_original_s():
    recorded = originals.manifest("magvitv2")
    for name, tensor in export_showo.quantizer_constants(13).items():
        shape, dtype = recorded[name]
        assert list(tensor.shape) == shape and str(tensor.dtype) == f"torch.{dtype}"
    constants = export_showo.quantizer_constants(3)
    assert constants["quantize.power_vals"].tolist() == [4, 2, 1]
    assert constants["quantize.embedding"][5].tolist() == [1, -1, 1]


# Recorded numbers


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The recorded models in the original's format, converted by the command."""
    root = tmp_path_factory.mktemp("recorded")
    config = {"_class_name": "Showo", "w_clip_vit": False, "vocab_size": 58498, "llm_vocab_size": 50295}
    sizes = {"codebook_size": 8192, "num_vq_tokens": 256, "llm_model_path": "microsoft/phi-1_5"}
    write_original(root / "showo", originals.recorded_showo(), config | sizes, "sharded bin")
    write_original(root / "magvitv2", originals.recorded_magvitv2(), None)
    assert convert(root, root / "out", "--verify") == 0
    clip = config | sizes | {"w_clip_vit": True}
    write_original(root / "clip", originals.recorded_showo("showo_clip"), clip, "bin")
    assert convert(root, root / "clip-out", showo="clip") == 0
    return root


@pytest.mark.slow
def test_a_converted_checkpoint_gives_the_recorded_images(recorded, reference):
    pipe = ShowoT2IPipeline.from_pretrained(recorded / "out")
    pipe.set_progress_bar_config(disable=True)
    for number, case in enumerate(reference.cases["t2i"]):
        schedule = case.get("schedule", "cosine")
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, masking_schedule=schedule)
        tokens = pipe(
            prompt=[reference.prompts[i] for i in case["prompts"]],
            guidance_scale=1 + case["guidance"],
            num_inference_steps=case["steps"],
            temperature=case.get("temperature"),
            generator=torch.Generator().manual_seed(case["seed"]),
            output_type="latent",
        ).images
        assert torch.equal(tokens.flatten(1), reference.tensors[f"t2i.{number}.tokens"])


@pytest.mark.slow
@torch.no_grad()
def test_a_converted_tokenizer_gives_the_recorded_pixels(recorded, magvitv2_records):
    model = ShowoForCausalLM.from_pretrained(recorded / "out" / "model").image_tokenizer
    for size in range(3):
        z, pixels, indices = (magvitv2_records[f"{size}.{name}"] for name in ("z", "pixels", "indices"))
        found = model.encode(pixels).image_tokens
        certain = (z.abs() > 1e-3).all(1)
        assert torch.equal(found[certain], indices.view(found.shape)[certain])
        decoded = model.decode(magvitv2_records[f"{size}.codes"].view(1, *z.shape[2:])).sample
        torch.testing.assert_close(decoded, magvitv2_records[f"{size}.decoded"].clamp(-1, 1), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_converted_checkpoint_gives_the_recorded_answers(recorded, reference):
    tensors = reference.tensors
    model = ShowoForCausalLM.from_pretrained(recorded / "out" / "model")
    for number in range(2):
        ids, expected = tensors[f"mmu.{number}.ids_in"], tensors[f"mmu.{number}.new_ids"]
        found = model.generate(ids, max_new_tokens=expected.shape[1], do_sample=False, eos_token_id=None)
        assert torch.equal(found[:, ids.shape[1] :], expected)
    model = ShowoForCausalLM.from_pretrained(recorded / "clip-out" / "model")
    ids, features, expected = (tensors[f"mmu_clip.{name}"] for name in ("ids_in", "features", "new_ids"))
    soi = (ids[0] == model.config.soi_token_id).nonzero().item()
    places = torch.full((1, features.shape[1]), model.config.image_token_id)
    whole = torch.cat([ids[:, : soi + 1], places, ids[:, soi + 1 :]], 1)
    found = model.generate(
        whole, image_features=features, max_new_tokens=expected.shape[1], do_sample=False, eos_token_id=None
    )
    assert torch.equal(found[:, whole.shape[1] :], expected)
