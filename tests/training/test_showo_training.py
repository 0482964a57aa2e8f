"""What a run checks and changes of its model and of its data, on tiny models and real files."""

import json
import shutil
from pathlib import Path

import pytest
import small_run
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from showo_hf import MaskGITScheduler, ShowoT2IPipeline
from showo_hf.processing.processing_showo import showo_image_processor
from showo_hf.training.configs import ConceptConfig
from showo_hf.training.data.sources import DataSource
from showo_hf.training.data.tokenizing import TokenizeOptions, store_tokens
from showo_hf.training.dry_run import plan_of
from showo_hf.training.errors import TrainingError
from showo_hf.training.run import run_recipe
from showo_hf.training.showo_training import data_of, validation_parts


SIZE = tiny.SIDE * tiny.FACTOR


def test_the_result_has_the_size_of_the_training_images(tmp_path):
    """Without it, a model that learned 512 pixels would go on to make images of 256."""
    small_run.run(tmp_path, steps=1, image_size=2 * SIZE, prompts=["red"])
    pipe = ShowoT2IPipeline.from_pretrained(tmp_path / "out")
    assert pipe.model.config.num_image_tokens == pipe.processor.num_image_tokens == (2 * tiny.SIDE) ** 2
    assert pipe("red", num_inference_steps=1).images[0].size == (2 * SIZE, 2 * SIZE)
    with Image.open(tmp_path / "out-samples" / "step-1-0.png") as sample:
        assert sample.size == (2 * SIZE, 2 * SIZE)


@pytest.mark.parametrize(
    "use_cpu", [True, pytest.param(None, marks=pytest.mark.gpu)], ids=["cpu", "the device that there is"]
)
def test_the_image_decoder_of_the_model_makes_the_samples_and_is_kept(tmp_path, use_cpu):
    pipe = ShowoT2IPipeline.from_pretrained(small_run.shared() / "model")
    pipe.register_modules(image_decoder=tiny.image_decoder())
    pipe.save_pretrained(tmp_path / "model")
    small_run.run(tmp_path, model=str(tmp_path / "model"), steps=1, prompts=["red"], use_cpu=use_cpu)
    result = ShowoT2IPipeline.from_pretrained(tmp_path / "out")
    for name, value in pipe.image_decoder.state_dict().items():
        assert torch.equal(result.image_decoder.state_dict()[name], value)
    if use_cpu:  # on another device, sums have another order
        with_it, without = (
            result("red", generator=torch.Generator().manual_seed(0), decoder_steps=steps).images[0]
            for steps in (None, 0)
        )
        with Image.open(tmp_path / "out-samples" / "step-1-0.png") as sample:
            assert sample.tobytes() == with_it.tobytes() != without.tobytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_learn_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv(
        "TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache")
    )  # a killed process leaves half a file in the other
    model = small_run.write_model(tmp_path / "model", dropout=0.0)
    compiled, compile_module = [], torch.nn.Module.compile

    def recorded(module, **options):
        compiled.append(type(module).__name__)
        compile_module(module, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", recorded)
    small_run.run(tmp_path / "plain", model=str(model))
    assert not compiled
    small_run.run(tmp_path / "compiled", model=str(model), torch_compile=True)
    assert len(compiled) == 2 and len(set(compiled)) == 1  # its layers
    rows, others = (small_run.log_rows(tmp_path / name) for name in ("plain", "compiled"))
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(
        [row["loss"] for row in others if "loss" in row], rel=1e-4
    )
    first, second = (small_run.weights(tmp_path / name / "out") for name in ("plain", "compiled"))
    assert set(first) == set(second)
    assert all(torch.allclose(value, second[name], atol=1e-3) for name, value in first.items())


def test_a_size_that_the_image_tokenizer_cannot_encode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`image_size` must be a multiple of 4, got 18"):
        small_run.run(tmp_path, image_size=18)


@pytest.mark.parametrize("entry", ["data", "validation_data"])
def test_stored_tokens_of_images_of_another_size_are_refused(tmp_path, entry):
    model = ShowoT2IPipeline.from_pretrained(small_run.shared() / "model").model
    source = DataSource(str(small_run.shared() / "images"))
    store_tokens(
        TokenizeOptions(source),
        tmp_path / "tokens",
        lambda process: (model.image_tokenizer, showo_image_processor(2 * SIZE)),
    )
    for work in (run_recipe, plan_of):
        with pytest.raises(ValueError, match="holds images of 8 x 8 tokens, but those of the run have 4 x 4"):
            work(small_run.config(tmp_path, **{entry: str(tmp_path / "tokens")}))
    if entry == "data":
        small_run.run(tmp_path, data=str(tmp_path / "tokens"), image_size=2 * SIZE, steps=1)


@pytest.mark.parametrize("entry", ["data", "validation_data"])
@pytest.mark.parametrize("work", [run_recipe, plan_of])
def test_stored_tokens_of_another_image_tokenizer_are_refused(tmp_path, entry, work):
    other = tiny.lfq(seed=1, sample_size=SIZE)
    store_tokens(
        TokenizeOptions(DataSource(str(small_run.shared() / "images"))),
        tmp_path / "tokens",
        lambda process: (other, showo_image_processor(SIZE)),
    )
    with pytest.raises(ValueError, match="holds tokens of another image tokenizer than the model's"):
        work(small_run.config(tmp_path, **{entry: str(tmp_path / "tokens")}))


def test_a_model_that_reads_images_as_features_is_not_trained_on_questions(tmp_path):
    processor = tiny.clip_processor()
    model = tiny.clip_showo(processor.pad_token_id)
    scheduler = MaskGITScheduler(mask_token_id=tiny.CODES)
    ShowoT2IPipeline(model, processor, scheduler).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="`data.mmu` must be left out, because `model` reads images as continuous"):
        small_run.run(tmp_path, model=str(tmp_path / "model"), task="mmu")


@pytest.mark.parametrize("entry", ["data", "validation_data"])
def test_an_unknown_key_of_a_source_is_refused_with_the_nearest(tmp_path, entry, not_loaded):
    source = {"path": str(small_run.shared() / "images"), "text_colum": "text"}
    with pytest.raises(ValueError, match=f"no key `{entry}.text_colum`; did you mean 'text_column'"):
        small_run.run(tmp_path, **{entry: source})


# Validation


@pytest.mark.parametrize(
    ("batch_size", "rows", "counts"),
    [(4, 64, [4, 4, 4]), (8, 64, [8, 4]), (8, 10, [8, 2]), (4, 8, [4, 4]), (16, 64, [12]), (16, 5, [5])],
)
def test_validation_looks_at_each_row_once(tmp_path, batch_size, rows, counts):
    """Of 12 rows. Those of the last batch are not lost, and none counts twice."""
    config = small_run.config(tmp_path, **small_run.validated(batch_size=batch_size, validation_rows=rows))
    parts = validation_parts(config, ShowoT2IPipeline.from_pretrained(config.model))
    assert [len(part.input_ids) for part in parts] == [len(part.keys) for part in parts] == counts
    assert len({key for part in parts for key in part.keys}) == sum(counts)


# Concepts


def concept(folder: Path, **changes) -> ConceptConfig:
    """The config of a concept of two folders of images, with a third one for validation."""
    for number, name in enumerate(("first", "second", "third")):
        (folder / name).mkdir()
        Image.new("RGB", (SIZE, SIZE), small_run.COLOURS[number]).save(folder / name / f"{name} ü.png")
    entries = {
        "kind": "concept",
        "word": "owl",
        "kind_of": "bird",
        "data": [str(folder / "first"), str(folder / "second")],
        "validation_data": str(folder / "third"),
        "ema_decay": None,
    }
    return small_run.config(folder, **{**entries, **changes})


def test_each_folder_of_a_concept_keeps_its_images(tmp_path):
    config = concept(tmp_path)
    training, validation = data_of(config, config.data), data_of(config, config.validation_data)
    found = [
        source.example(source.table[0], "key", 0) for data in (training, validation) for source in data["t2i"].sources
    ]
    colours = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in small_run.COLOURS[:3]]
    assert [example.image.getpixel((0, 0)) for example in found] == colours
    assert all(example.text == ["owl bird", "a owl bird", "a picture of a owl bird"] for example in found)


def test_a_concept_is_trained_and_planned_without_further_files(tmp_path):
    config = concept(tmp_path, steps=1)
    before = sorted(path.name for path in tmp_path.iterdir())
    plan_of(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    run_recipe(config)
    assert not (tmp_path / "out-data").exists()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_a_concept_without_images_is_refused_before_the_model_is_loaded(tmp_path, not_loaded):
    config = concept(tmp_path)
    (tmp_path / "second" / "second ü.png").unlink()
    with pytest.raises(ValueError, match="`data` must be a folder of images, got '.*second', which holds none"):
        run_recipe(config)


@pytest.mark.parametrize("work", [run_recipe, plan_of])
def test_rows_of_the_embedding_are_not_trained_where_weights_are_spread(tmp_path, work):
    with pytest.raises(TrainingError, match="`train_word` needs `fsdp_size` 1, got 2"):
        work(concept(tmp_path, fsdp_size=2))


# Pickles


def as_pickle(folder: Path, name: str):
    """Store the weights of a folder as a pickle instead."""
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()


def test_the_weights_of_a_model_are_not_read_from_a_pickle(tmp_path):
    shutil.copytree(small_run.shared() / "model", tmp_path / "model")
    as_pickle(tmp_path / "model" / "model", "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        small_run.run(tmp_path, model=str(tmp_path / "model"))


@pytest.mark.parametrize("recipe", ["stage", "lfq-tokenizer"])
def test_the_weights_of_an_image_tokenizer_are_not_read_from_a_pickle(tmp_path, recipe):
    tiny.lfq().save_pretrained(tmp_path / "tokenizer")
    as_pickle(tmp_path / "tokenizer", "pytorch_model.bin")
    folder = str(tmp_path / "tokenizer")
    options = {"text_model": "none", "image_tokenizer": folder} if recipe == "stage" else {"model": folder}
    with pytest.raises(OSError, match="safetensors"):
        small_run.run(tmp_path, kind=recipe, **options)
