"""Pipelines as ONNX graphs: outputs compared with the model's, the script without torch, and bad input."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from onnxruntime import InferenceSession
from PIL import Image
from torch.nn.functional import mse_loss

from showo_hf import EMBEDDED_MODEL, HaltonScheduler, MaskAndReplaceScheduler, MaskGITScheduler, ShowoT2IPipeline
from showo_hf.conversion.errors import ConversionError
from showo_hf.conversion.export_onnx import SCHEDULER_SETTINGS, check_scheduler, export_onnx, main
from showo_hf.conversion.onnx_generate import Draws, OnnxShowo, softmax
from showo_hf.conversion.onnx_graphs import image_decoder_graph, image_encoder_graph, write_graph
from showo_hf.utils.metrics import psnr, psnr_from_mse


FILES = {"transformer.onnx", "image_encoder.onnx", "image_decoder.onnx", "generate.py", "onnx_config.json"}
FILES |= {"tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"}
PROMPTS = ["a red apple", "owl"]  # of different lengths, so that one is padded
CALL = {"guidance_scale": 2.5, "num_inference_steps": 5, "temperature": 0.7}


class TorchDraws(Draws):
    """The random numbers of torch's pipelines, in their order."""

    def tokens(self, probabilities):
        flat = torch.from_numpy(probabilities).flatten(0, 1)
        return torch.multinomial(flat, 1, generator=self.generator).view(probabilities.shape[:2]).numpy()

    def uniform(self, shape):
        return torch.rand(shape, generator=self.generator).numpy()

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)


class BestTokens(Draws):
    """No randomness: the most probable token, and no noise."""

    def tokens(self, probabilities):
        return probabilities.argmax(-1)

    def uniform(self, shape):
        return np.full(shape, np.exp(-1), np.float32)  # its Gumbel noise is 0


@pytest.fixture(scope="module")
def saved(processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "llama"
    tiny.pipeline(processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(saved) -> Path:
    folder = saved.parent / "onnx"
    export_onnx(saved, folder)
    return folder


@pytest.fixture(scope="module")
def runner(exported) -> OnnxShowo:
    return OnnxShowo(exported, threads=1)


@pytest.fixture(scope="module")
def eager(saved) -> ShowoT2IPipeline:
    pipe = ShowoT2IPipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def some_tokens(batch: int, tokens: int, known: float = 0.4, size: int = tiny.CODES) -> torch.LongTensor:
    """Image tokens (batch, tokens), some of them masked."""
    generator = torch.Generator().manual_seed(1)
    found = torch.randint(size, (batch, tokens), generator=generator)
    return torch.where(torch.rand(found.shape, generator=generator) < known, found, size)


@torch.no_grad()
def model_logits(pipe, tokens, prompts, guidance) -> torch.Tensor:
    """Guided logits (batch, tokens, codebook_size) by the model on whole sequences, without a key-value cache."""
    config, count = pipe.model.config, tokens.shape[1]
    texts = [*prompts, *[""] * len(prompts)] if guidance > 1 else prompts
    inputs = pipe.processor.text_to_image(texts, tokens.repeat(len(texts) // len(prompts), 1))
    logits = pipe.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    start = config.image_token_offset
    logits = logits[:, -1 - count : -1, start : start + config.codebook_size].float()
    if guidance <= 1:
        return logits
    conditional, unconditional = logits.chunk(2)
    return guidance * conditional - (guidance - 1) * unconditional


def logits_of_both(pipe, runner, tokens, prompts, guidance=2.5):
    """Guided logits (masked, codebook_size) by the model and by the graphs."""
    texts = [*prompts, *[""] * len(prompts)] if guidance > 1 else prompts
    masked = (tokens == pipe.model.config.codebook_size).numpy()
    ours = model_logits(pipe, tokens, prompts, guidance).numpy()
    theirs = runner.predict_logits(tokens.numpy(), runner.encode_prompts(texts), guidance)
    return ours[masked], theirs[masked]


def best_tokens_by_torch(pipe, prompt: str, steps: int, guidance: float) -> list[int]:
    """Image tokens if every step takes the most probable ones, by torch's model and scheduler."""
    tokens = torch.full((1, tiny.SIDE**2), tiny.CODES)
    pipe.scheduler.set_timesteps(steps)
    for step in range(steps):
        masked = tokens == tiny.CODES
        probabilities, best = model_logits(pipe, tokens, [prompt], guidance).softmax(-1).max(-1)
        tokens = torch.where(masked, best, tokens)
        if step < steps - 1:
            count = pipe.scheduler.num_masked_after(step, masked.sum(-1, keepdim=True), tokens.shape[1])
            order = torch.where(masked, probabilities, torch.inf).argsort(-1)
            tokens[0, order[0, : int(count)]] = tiny.CODES
    return tokens[0].tolist()


# Computation


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [2.5, 1.0])
def test_logits_equal_the_model_s(eager, runner, guidance):
    ours, theirs = logits_of_both(eager, runner, some_tokens(2, tiny.SIDE**2), PROMPTS, guidance)
    assert len(ours) > 10
    np.testing.assert_allclose(theirs, ours, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 6, 40])
def test_images_of_other_sizes(eager, runner, tokens):
    ours, theirs = logits_of_both(eager, runner, some_tokens(1, tokens, known=0), PROMPTS[:1])
    np.testing.assert_allclose(theirs, ours, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_most_probable_tokens_of_every_step_equal_torch_s(eager, runner):
    encoded = runner.encode_prompts([PROMPTS[0], ""])
    masked = np.full((1, tiny.SIDE**2), tiny.CODES)
    found = runner.denoise(masked, encoded, 6, 2.5, temperature=0.0, draws=BestTokens())
    assert found[0].tolist() == best_tokens_by_torch(eager, PROMPTS[0], 6, 2.5)


@pytest.mark.slow
@pytest.mark.parametrize("negative", [None, "two hearts"])
def test_with_torch_s_random_numbers_the_tokens_equal_the_pipeline_s(eager, runner, negative):
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        expected = eager(PROMPTS, negative_prompt=negative, generator=generator, output_type="latent", **CALL).images
        encoded = runner.encode_prompts([*PROMPTS, *[negative or ""] * 2])
        masked = np.full((2, tiny.SIDE**2), tiny.CODES)
        found = runner.denoise(masked, encoded, 5, 2.5, 0.7, TorchDraws(seed))
        assert found.reshape(expected.shape).tolist() == expected.tolist()


@pytest.mark.slow
def test_given_tokens_stay(runner):
    given = some_tokens(1, tiny.SIDE**2).numpy()
    found = runner.denoise(given, runner.encode_prompts(["owl", ""]), 4, 2.5, 1.0, Draws(0))
    assert (found < tiny.CODES).all()
    assert (found == given)[given < tiny.CODES].all()


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(4, 4), (1, 1), (2, 7)])
def test_the_image_tokenizer_encodes_and_decodes(eager, runner, grid, tmp_path):
    tokens = torch.randint(tiny.CODES, (2, *grid), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = eager.image_tokenizer.decode(tokens).sample
    (found,) = runner.image_decoder.run(None, {"image_tokens": tokens.numpy()})
    np.testing.assert_allclose(found, pixels.numpy(), atol=1e-4)
    (image_tokens,) = runner.image_encoder.run(None, {"pixel_values": pixels.numpy()})
    assert image_tokens.tolist() == eager.image_tokenizer.encode(pixels).image_tokens.tolist()

    images = eager.decode_latents(tokens, "pil")
    for one, other in zip(runner.decode(tokens.numpy()), images, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
    assert runner.encode(images, grid).shape == tokens.shape
    assert runner.encode(images).shape == (2, tiny.SIDE, tiny.SIDE)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    images[0].rotate(180).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert np.array_equal(runner.encode([turned], grid), runner.encode(images[:1], grid))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vq", {"distance": "euclidean"}),
        ("vq", {"distance": "cosine"}),
        ("vq", {"encoder_context": False}),
        ("lfq", {"encoder_context": False}),
    ],
)
@torch.no_grad()
def test_image_tokenizers_of_other_kinds(kind, options, tmp_path):
    tokenizer = tiny.TOKENIZERS[kind](**options)
    if kind == "vq":  # a codebook that the images use, of the latents of 64 other cells
        latents = tokenizer.encode(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))).latents
        tokenizer.quantizer.codebook.copy_(latents[0].flatten(1).T)
    write_graph(image_encoder_graph(tokenizer), tmp_path / "encoder.onnx")
    write_graph(image_decoder_graph(tokenizer), tmp_path / "decoder.onnx")
    pixels = torch.rand(3, 3, 8, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels[0] = pixels[0, :, :1, :1]  # equal cells
    expected = tokenizer.encode(pixels).image_tokens
    (tokens,) = InferenceSession(tmp_path / "encoder.onnx").run(None, {"pixel_values": pixels.numpy()})
    assert np.array_equal(tokens, expected.numpy()) and len(np.unique(tokens)) > 3
    (decoded,) = InferenceSession(tmp_path / "decoder.onnx").run(None, {"image_tokens": tokens})
    np.testing.assert_allclose(decoded, tokenizer.decode(expected).sample.numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_sizes_that_do_not_fit_are_refused(runner):
    with pytest.raises(ValueError, match=r"`size` must be two positive multiples of 4, got \(8, 9\)"):
        runner(["owl"], size=(8, 9))
    (image,) = runner(["owl"], size=(8, 12), steps=2, draws=Draws(0))
    assert image.size == (12, 8)


# Output


@pytest.mark.slow
def test_the_folder_is_complete_and_names_no_paths(exported):
    assert {path.name for path in exported.iterdir()} == FILES
    assert [path.name for path in exported.parent.iterdir() if path.name.startswith(".")] == []
    for path in exported.glob("*.onnx"):
        model = onnx.load(path)
        assert {node.domain for node in model.graph.node} == {""}  # only operators of the standard
        text = path.read_bytes()
        assert b"site-packages" not in text and str(Path(__file__).parents[2]).encode() not in text
        names = [dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim]
        assert "batch" in names or "rows" in names


@pytest.mark.slow
def test_the_script_runs_where_torch_cannot_be_imported(exported, runner, tmp_path):
    blocked = ("torch", "transformers", "diffusers", "onnx", "showo_hf")
    program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({blocked}))
sys.argv = ["generate.py", "a red apple", "-o", "apple.png", "--seed", "3", "--num", "2", "--steps", "4"]
runpy.run_path({str(exported / "generate.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "apple-0.png\napple-1.png\n"
    for index in range(2):
        (expected,) = runner(["a red apple"], steps=4, draws=Draws(3 + index))
        assert Image.open(tmp_path / f"apple-{index}.png").tobytes() == expected.tobytes()


@pytest.mark.slow
def test_phi_in_half_precision(processor, tmp_path):
    tiny.pipeline(processor, "phi").save_pretrained(tmp_path / "phi")
    report = export_onnx(tmp_path / "phi", tmp_path / "onnx", dtype="float16")
    assert report.startswith("transformer: ")
    pipe = ShowoT2IPipeline.from_pretrained(tmp_path / "phi")
    ours, theirs = logits_of_both(pipe, OnnxShowo(tmp_path / "onnx"), some_tokens(2, tiny.SIDE**2), PROMPTS)
    assert theirs.dtype == np.float32
    np.testing.assert_allclose(theirs, ours, atol=0.05 * np.abs(ours).max())


@pytest.mark.slow
def test_int8_is_smaller_and_close(saved, exported, eager, tmp_path):
    """Also with the weights in separate files, as for models that are too large for one file."""
    export_onnx(saved, tmp_path / "int8", quantize="int8", external_data=True)
    names = {path.name for path in (tmp_path / "int8").iterdir()}
    assert names == FILES | {f"{name}.onnx.data" for name in ("transformer", "image_encoder", "image_decoder")}
    assert json.loads((tmp_path / "int8" / "onnx_config.json").read_text())["quantize"] == "int8"

    small = OnnxShowo(tmp_path / "int8")
    ours, theirs = logits_of_both(eager, small, some_tokens(2, 60, known=0), PROMPTS)
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.7
    assert np.abs(softmax(ours) - softmax(theirs)).sum(-1).mean() / 2 < 0.2
    tokens = torch.randint(tiny.CODES, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    (pixels,) = small.image_decoder.run(None, {"image_tokens": tokens.numpy()})
    with torch.no_grad():
        error = mse_loss(torch.from_numpy(pixels), eager.image_tokenizer.decode(tokens).sample)
    assert psnr_from_mse(error) > 30


@pytest.mark.slow
def test_the_embedded_model_end_to_end(tmp_path):
    pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    prompt, size = "a red apple to the left of a blue car", pipe.model.config.codebook_size
    call = {"guidance_scale": 2.75, "num_inference_steps": 8}
    expected = pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="latent", **call).images
    with torch.no_grad():
        pixels = pipe.image_tokenizer.decode(expected).sample.numpy()
    for quantize in (None, "int8"):
        folder = tmp_path / str(quantize)
        export_onnx(EMBEDDED_MODEL, folder, quantize=quantize)
        small = OnnxShowo(folder)
        (found,) = small.image_decoder.run(None, {"image_tokens": expected.numpy()})
        tokens = torch.where(some_tokens(1, expected[0].numel(), size=size) == size, size, expected.flatten(1))
        ours, theirs = logits_of_both(pipe, small, tokens, [prompt], 2.75)
        same = (ours.argmax(-1) == theirs.argmax(-1)).mean()
        assert same == 1 if quantize is None else same > 0.75
        assert psnr(torch.from_numpy(found), torch.from_numpy(pixels)) > (80 if quantize is None else 35)
        if quantize is None:
            masked = np.full((1, expected.numel()), size)
            drawn = small.denoise(masked, small.encode_prompts([prompt, ""]), 8, 2.75, 1.0, TorchDraws(0))
            assert drawn.reshape(expected.shape).tolist() == expected.tolist()
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("*.onnx")) for name in ("None", "int8")]
    assert sizes[1] < 0.3 * sizes[0]


def test_a_diffusion_decoder_is_left_out_and_named(processor, tmp_path, monkeypatch):
    """Without the graphs, which take long."""
    monkeypatch.setattr("showo_hf.conversion.export_onnx.PARTS", ())
    pipe, reports = tiny.pipeline(processor), []
    for decoder in (None, tiny.image_decoder()):
        pipe.register_modules(image_decoder=decoder)
        pipe.save_pretrained(tmp_path / f"saved-{len(reports)}")
        reports.append(export_onnx(tmp_path / f"saved-{len(reports)}", tmp_path / f"onnx-{len(reports)}"))
    line = "the pipeline's diffusion decoder is left out: image_decoder.onnx is the image tokenizer's decoder"
    assert reports == ["", line]


# Bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "bfloat16"}, "`dtype` must be one of float32, float16, got 'bfloat16'"),
        ({"quantize": "int4"}, "`quantize` must be one of int8 or None, got 'int4'"),
        ({"quantize": "int8", "dtype": "float16"}, "`quantize` needs the `dtype` float32, got float16"),
    ],
)
def test_wrong_options_are_refused(saved, tmp_path, options, message):
    with pytest.raises(ConversionError, match=message):
        export_onnx(saved, tmp_path / "onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_pipeline_is_refused(saved, tmp_path, capsys):
    for folder in (tmp_path / "nowhere", tmp_path, saved / "model"):
        with pytest.raises(ConversionError, match=f"`folder` must be a saved pipeline .* got '{folder}'"):
            export_onnx(folder, tmp_path / "onnx")
    assert main([str(tmp_path), "--output", str(tmp_path / "onnx")]) == 1
    assert "error: `folder` must be a saved pipeline" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused(saved, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError):
        export_onnx(saved, tmp_path)
    with pytest.raises(ConversionError, match="`--overwrite` only replaces models"):
        export_onnx(saved, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("output", [".", "..", "../llama"])
def test_the_pipeline_itself_is_never_overwritten(saved, output):
    with pytest.raises(ConversionError, match="`--output` must be a separate folder"):
        export_onnx(saved, saved / output, overwrite=True)
    assert (saved / "model_index.json").is_file()


def test_a_model_without_image_tokenizer_is_refused(processor, tmp_path):
    pipe = tiny.pipeline(processor)
    model = tiny.showo("llama", text_ids=processor.pad_token_id, images=False)
    ShowoT2IPipeline(model, processor, pipe.scheduler).save_pretrained(tmp_path / "saved")
    with pytest.raises(ConversionError, match="must hold a model with an image tokenizer"):
        export_onnx(tmp_path / "saved", tmp_path / "onnx")
    assert os.listdir(tmp_path) == ["saved"]


@pytest.mark.parametrize("name, value", [("top_k", 5), ("top_p", 0.9)])
def test_a_setting_that_the_script_would_ignore_is_refused(saved, tmp_path, name, value):
    folder = tmp_path / "pipeline"
    shutil.copytree(saved, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ConversionError, match=f"the scheduler's `{name}` must be None, .* got {value}"):
        export_onnx(folder, tmp_path / "onnx")
    assert os.listdir(tmp_path) == ["pipeline"]


def test_a_setting_with_its_default_value_is_accepted():
    check_scheduler(MaskGITScheduler(masking_schedule="arccos", temperature=0.5, temperature_rule="linear"))


class OtherScheduler(MaskGITScheduler):
    """A scheduler that computes something else."""


@pytest.mark.parametrize("kind", [OtherScheduler, HaltonScheduler, MaskAndReplaceScheduler])
def test_another_scheduler_is_refused(kind):
    with pytest.raises(ConversionError, match=f"must be a MaskGITScheduler, got {kind.__name__}"):
        check_scheduler(kind())


@pytest.mark.parametrize("name, value", [("masking_schedule", "quadratic"), ("temperature_rule", "constant")])
def test_a_value_that_the_script_does_not_know_is_refused(name, value):
    """A value that a later version of the scheduler may accept."""
    scheduler = MaskGITScheduler()
    scheduler.register_to_config(**{name: value})
    with pytest.raises(ConversionError, match=f"generate.py does not support .*`{name}` must be .* got '{value}'"):
        check_scheduler(scheduler)


def test_every_setting_of_the_scheduler_is_known_or_refused():
    """A new setting of the scheduler must be refused by the export, or supported by the script."""
    for name in inspect.signature(MaskGITScheduler).parameters:
        if name not in ("mask_token_id", *SCHEDULER_SETTINGS):
            scheduler = MaskGITScheduler()
            scheduler.register_to_config(**{name: 0.5})
            with pytest.raises(ConversionError, match=f"`{name}`"):
                check_scheduler(scheduler)


@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_not_kept(processor, tmp_path):
    pipe = tiny.pipeline(processor)
    pipe.model.model.layers[0].mlp.up_proj.weight.data.fill_(torch.nan)
    pipe.save_pretrained(tmp_path / "saved")
    (tmp_path / "onnx").mkdir()
    earlier = json.dumps({"format": "showo-onnx"})
    (tmp_path / "onnx" / "onnx_config.json").write_text(earlier)
    with pytest.raises(ConversionError, match="the graph of transformer differs from the model by nan"):
        export_onnx(tmp_path / "saved", tmp_path / "onnx", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "saved"]
    assert (tmp_path / "onnx" / "onnx_config.json").read_text() == earlier
