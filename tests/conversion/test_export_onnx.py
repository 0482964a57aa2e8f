"""Pipelines as ONNX graphs: what they compute against the model itself, the runner without torch, and bad input."""

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
from PIL import Image
from torch.nn.functional import mse_loss

from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline
from showo_hf.conversion.errors import ConversionError
from showo_hf.conversion.export_onnx import export_onnx, main
from showo_hf.conversion.onnx_generate import Draws, OnnxShowo, softmax
from showo_hf.utils.metrics import psnr, psnr_from_mse


FILES = {"transformer.onnx", "image_encoder.onnx", "image_decoder.onnx", "generate.py", "onnx_config.json"}
FILES |= {"tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"}
PROMPTS = ["a red apple", "owl"]  # of different lengths, so that there are pads
CALL = {"guidance_scale": 2.5, "num_inference_steps": 5, "temperature": 0.7}


class TorchDraws(Draws):
    """The draws of torch's pipelines, in their order."""

    def codes(self, probabilities):
        flat = torch.from_numpy(probabilities).flatten(0, 1)
        return torch.multinomial(flat, 1, generator=self.generator).view(probabilities.shape[:2]).numpy()

    def uniform(self, shape):
        return torch.rand(shape, generator=self.generator).numpy()

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)


class BestCodes(Draws):
    """No chance at all: the most probable code, and no noise."""

    def codes(self, probabilities):
        return probabilities.argmax(-1)

    def uniform(self, shape):
        return np.full(shape, np.exp(-1), np.float32)  # of which Gumbel noise is 0


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


def some_codes(batch: int, tokens: int, known: float = 0.4, size: int = tiny.CODES) -> torch.LongTensor:
    """Codes (batch, tokens), some of them unknown."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(size, (batch, tokens), generator=generator)
    return torch.where(torch.rand(codes.shape, generator=generator) < known, codes, size)


def logits_of_both(pipe, runner, tokens, prompts, guidance=2.5):
    """Guided logits (unknown, codes) by the pipeline and by the graphs."""
    texts = [*prompts, *[""] * len(prompts)] if guidance > 1 else prompts
    encoded = pipe.encode_prompt(prompts, None, 1, guidance > 1)
    rows = pipe.image_input_ids(tokens).repeat(len(texts) // len(prompts), 1)
    ours = pipe.predict_codes(tokens, encoded, pipe.image_attention_mask(encoded, rows), guidance)
    theirs = runner.predict_codes(tokens.numpy(), runner.encode_prompts(texts), guidance)
    unknown = (tokens == pipe.model.config.codebook_size).numpy()
    return ours.numpy()[unknown], theirs[unknown]


def best_codes_by_torch(pipe, prompt: str, steps: int, guidance: float) -> list[int]:
    """Codes of an image when every step takes the best ones, with torch's model and scheduler."""
    encoded = pipe.encode_prompt(prompt, None, 1, True)
    tokens = torch.full((1, tiny.SIDE**2), tiny.CODES)
    mask = pipe.image_attention_mask(encoded, pipe.image_input_ids(tokens).repeat(2, 1))
    pipe.scheduler.set_timesteps(steps)
    for step in range(steps):
        unknown = tokens == tiny.CODES
        chances, best = pipe.predict_codes(tokens, encoded, mask, guidance).softmax(-1).max(-1)
        tokens = torch.where(unknown, best, tokens)
        if step < steps - 1:
            count = pipe.scheduler.num_masked_after(step, unknown.sum(-1, keepdim=True), tokens.shape[1])
            order = torch.where(unknown, chances, torch.inf).argsort(-1)
            tokens[0, order[0, : int(count)]] = tiny.CODES
    return tokens[0].tolist()


# What is computed


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [2.5, 1.0])
def test_logits_of_a_step_are_the_model_s(eager, runner, guidance):
    ours, theirs = logits_of_both(eager, runner, some_codes(2, tiny.SIDE**2), PROMPTS, guidance)
    assert len(ours) > 10
    np.testing.assert_allclose(theirs, ours, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 6, 40])
def test_images_of_other_sizes(eager, runner, tokens):
    ours, theirs = logits_of_both(eager, runner, some_codes(1, tokens, known=0), PROMPTS[:1])
    np.testing.assert_allclose(theirs, ours, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_best_codes_of_every_step_are_torch_s(eager, runner):
    encoded = runner.encode_prompts([PROMPTS[0], ""])
    unknown = np.full((1, tiny.SIDE**2), tiny.CODES)
    found = runner.fill_in(unknown, encoded, 6, 2.5, temperature=0.0, draws=BestCodes())
    assert found[0].tolist() == best_codes_by_torch(eager, PROMPTS[0], 6, 2.5)


@pytest.mark.slow
@pytest.mark.parametrize("negative", [None, "two hearts"])
def test_with_torch_s_draws_the_codes_are_the_pipeline_s(eager, runner, negative):
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        wanted = eager(PROMPTS, negative_prompt=negative, generator=generator, output_type="latent", **CALL).images
        encoded = runner.encode_prompts([*PROMPTS, *[negative or ""] * 2])
        unknown = np.full((2, tiny.SIDE**2), tiny.CODES)
        found = runner.fill_in(unknown, encoded, 5, 2.5, 0.7, TorchDraws(seed))
        assert found.reshape(wanted.shape).tolist() == wanted.tolist()


@pytest.mark.slow
def test_known_codes_stay(runner):
    given = some_codes(1, tiny.SIDE**2).numpy()
    found = runner.fill_in(given, runner.encode_prompts(["owl", ""]), 4, 2.5, 1.0, Draws(0))
    assert (found < tiny.CODES).all()
    assert (found == given)[given < tiny.CODES].all()


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(4, 4), (1, 1), (2, 7)])
def test_the_image_tokenizer_both_ways(eager, runner, grid):
    tokens = torch.randint(tiny.CODES, (2, *grid), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = eager.image_tokenizer.decode(tokens).sample
    (found,) = runner.image_decoder.run(None, {"image_tokens": tokens.numpy()})
    np.testing.assert_allclose(found, pixels.numpy(), atol=1e-4)
    (codes,) = runner.image_encoder.run(None, {"pixel_values": pixels.numpy()})
    assert codes.tolist() == eager.image_tokenizer.encode(pixels).image_tokens.tolist()

    images = eager.decode_latents(tokens, "pil")
    for one, other in zip(runner.decode(tokens.numpy()), images, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
    assert runner.encode(images, grid).shape == tokens.shape
    assert runner.encode(images).shape == (2, tiny.SIDE, tiny.SIDE)


@pytest.mark.slow
def test_sizes_that_do_not_fit_are_refused(runner):
    with pytest.raises(ValueError, match=r"`size` must be two positive multiples of 4, got \(8, 9\)"):
        runner(["owl"], size=(8, 9))
    (image,) = runner(["owl"], size=(8, 12), steps=2, draws=Draws(0))
    assert image.size == (12, 8)


# What is written


@pytest.mark.slow
def test_the_folder_is_whole_and_plain(exported):
    assert {path.name for path in exported.iterdir()} == FILES
    assert [path.name for path in exported.parent.iterdir() if path.name.startswith(".")] == []
    for path in exported.glob("*.onnx"):
        model = onnx.load(path)
        assert {node.domain for node in model.graph.node} == {""}  # operators of the standard alone
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
        (wanted,) = runner(["a red apple"], steps=4, draws=Draws(3 + index))
        assert Image.open(tmp_path / f"apple-{index}.png").tobytes() == wanted.tobytes()


@pytest.mark.slow
def test_phi_in_half_precision(processor, tmp_path):
    tiny.pipeline(processor, "phi").save_pretrained(tmp_path / "phi")
    report = export_onnx(tmp_path / "phi", tmp_path / "onnx", dtype="float16")
    assert report.startswith("transformer: ")
    pipe = ShowoT2IPipeline.from_pretrained(tmp_path / "phi")
    ours, theirs = logits_of_both(pipe, OnnxShowo(tmp_path / "onnx"), some_codes(2, tiny.SIDE**2), PROMPTS)
    assert theirs.dtype == np.float32
    np.testing.assert_allclose(theirs, ours, atol=0.05 * np.abs(ours).max())


@pytest.mark.slow
def test_int8_is_smaller_and_close(saved, exported, eager, tmp_path):
    """With the weights in files of their own, as they are for models that one file cannot hold."""
    export_onnx(saved, tmp_path / "int8", quantize="int8", external_data=True)
    names = {path.name for path in (tmp_path / "int8").iterdir()}
    assert names == FILES | {f"{name}.onnx.data" for name in ("transformer", "image_encoder", "image_decoder")}
    assert json.loads((tmp_path / "int8" / "onnx_config.json").read_text())["quantize"] == "int8"

    small = OnnxShowo(tmp_path / "int8")
    ours, theirs = logits_of_both(eager, small, some_codes(2, 60, known=0), PROMPTS)
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
    prompt, codes = "a red apple, flat style", pipe.model.config.codebook_size
    call = {"guidance_scale": 2.75, "num_inference_steps": 8}
    wanted = pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="latent", **call).images
    with torch.no_grad():
        pixels = pipe.image_tokenizer.decode(wanted).sample.numpy()
    for quantize in (None, "int8"):
        folder = tmp_path / str(quantize)
        export_onnx(EMBEDDED_MODEL, folder, quantize=quantize)
        small = OnnxShowo(folder)
        (found,) = small.image_decoder.run(None, {"image_tokens": wanted.numpy()})
        tokens = torch.where(some_codes(1, wanted[0].numel(), size=codes) == codes, codes, wanted.flatten(1))
        ours, theirs = logits_of_both(pipe, small, tokens, [prompt], 2.75)
        same = (ours.argmax(-1) == theirs.argmax(-1)).mean()
        assert same == 1 if quantize is None else same > 0.75
        assert psnr(torch.from_numpy(found), torch.from_numpy(pixels)) > (80 if quantize is None else 35)
        if quantize is None:
            unknown = np.full((1, wanted.numel()), codes)
            drawn = small.fill_in(unknown, small.encode_prompts([prompt, ""]), 8, 2.75, 1.0, TorchDraws(0))
            assert drawn.reshape(wanted.shape).tolist() == wanted.tolist()
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("*.onnx")) for name in ("None", "int8")]
    assert sizes[1] < 0.3 * sizes[0]


# Bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "bfloat16"}, "`dtype` must be one of float32, float16, got 'bfloat16'"),
        ({"quantize": "int4"}, "`quantize` must be one of int8 or None, got 'int4'"),
        ({"quantize": "int8", "dtype": "float16"}, "`quantize` needs the `dtype` float32, got float16"),
    ],
)
def test_wrong_options(saved, tmp_path, options, message):
    with pytest.raises(ConversionError, match=message):
        export_onnx(saved, tmp_path / "onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_pipeline_is_refused(saved, tmp_path, capsys):
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
    with pytest.raises(ConversionError, match="`--overwrite` replaces models alone"):
        export_onnx(saved, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("output", [".", "..", "../llama"])
def test_the_pipeline_itself_is_never_overwritten(saved, output):
    with pytest.raises(ConversionError, match="`--output` must be a folder of its own"):
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
def test_a_scheduler_that_the_runner_does_not_know_is_refused(saved, tmp_path, name, value):
    folder = tmp_path / "pipeline"
    shutil.copytree(saved, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ConversionError, match=f"the scheduler's `{name}` must be None, .* got {value}"):
        export_onnx(folder, tmp_path / "onnx")


@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_not_kept(processor, tmp_path):
    pipe = tiny.pipeline(processor)
    pipe.model.model.layers[0].mlp.up_proj.weight.data.fill_(torch.nan)
    pipe.save_pretrained(tmp_path / "saved")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "onnx_config.json").write_text("kept")
    with pytest.raises(ConversionError, match="the graph of transformer differs from the model by nan"):
        export_onnx(tmp_path / "saved", tmp_path / "onnx", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "saved"]
    assert (tmp_path / "onnx" / "onnx_config.json").read_text() == "kept"
