"""Each shipped recipe in miniature: from a folder of files to a repository that loads."""

import json
import math
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load, load_file
from small_run import log_rows, same_weights, shared
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
    get_scheduler,
)

from showo_hf import EMBEDDED_MODEL, MaskAndReplaceScheduler, ShowoMMUPipeline, ShowoT2IPipeline
from showo_hf.cli import main
from showo_hf.training.recipe_entries import read_recipe, shipped_recipes


COMMON = ("logging_steps=1", "save_steps=2", "use_cpu=true", "warmup_steps=1", "report_to=none")
PUSHED = "someone/showo-mine"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Data of all kinds: captioned images, images of one thing, conversations, texts; and a text model."""
    folder = tmp_path_factory.mktemp("files")
    images = sorted((shared() / "images").glob("*.png"))
    (folder / "thing").mkdir()
    for number, image in enumerate(images[:5]):
        (folder / "thing" / f"{number}.png").write_bytes(image.read_bytes())
    conversations = [
        {
            "image": image.name,
            "conversations": [
                {"from": "human", "value": "<image>\nwhat is this?"},
                {"from": "gpt", "value": "a red apple."},
            ],
        }
        for image in images
    ]
    (folder / "conversations.json").write_text(json.dumps(conversations))
    (folder / "images").mkdir()
    for image in images:
        (folder / "images" / image.name).write_bytes(image.read_bytes())
    (folder / "texts.txt").write_text("a red apple\ntwo hearts\nan owl, flat style\na green pear\n")

    tokenizer = tiny.text_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "text-model")
    tokenizer.save_pretrained(folder / "text-model")
    tiny.lfq(sample_size=16).save_pretrained(folder / "image-tokenizer")
    return folder


def train(recipe: str, output: Path, *entries: str) -> Path:
    model = () if any(entry.startswith("text_model=") for entry in entries) else (f"model={shared() / 'model'}",)
    assert main(["train", recipe, f"output={output}", *model, *COMMON, *entries]) == 0
    return output


def entries_of(recipe: str, files: Path) -> list[str]:
    """What a user gives for a recipe."""
    images = shared() / "images"
    kind = read_recipe(recipe)["kind"]
    if kind == "concept":
        return [f"data={files / 'thing'}", "word=owl", "steps=3", "batch_size=2"]
    if recipe == "instruct":
        return [f"data={files / 'conversations.json'}", "steps=3", "batch_size=2"]
    if kind == "stage":
        rows = "batch_size={t2i: 2, lm: 1, mmu: 2}"
        tasks = {"t2i": str(images), "lm": str(files / "texts.txt"), "mmu": str(files / "conversations.json")}
        start = []
        if recipe == "stage1":
            tasks["mmu"] = str(images)
            start = [f"text_model={files / 'text-model'}", f"image_tokenizer={files / 'image-tokenizer'}"]
        size = ["image_size=16"] if "image_size" in read_recipe(recipe) else []
        return [f"data={json.dumps(tasks)}", rows, "steps=3", *start, *size]
    return [f"data={images}", "steps=3", "batch_size=2"]


def transformer_recipes() -> list[str]:
    return [
        name for name in shipped_recipes() if read_recipe(name)["kind"] in ("finetune", "lora", "concept", "stage")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", transformer_recipes())
def test_a_recipe_runs_from_files_to_a_repository_that_loads(recipe, files, tmp_path, hub_here):
    output = train(recipe, tmp_path / "out", *entries_of(recipe, files), f"push_to_hub={PUSHED}", "licence=mit")
    rows = [row for row in log_rows(tmp_path) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    if read_recipe(recipe)["kind"] == "stage":
        assert {"loss_t2i", "loss_lm", "loss_mmu"} <= set(rows[-1])

    pushed = hub_here.repositories[PUSHED]
    here = {file.relative_to(output).as_posix() for file in output.rglob("*") if file.is_file()}
    assert set(pushed) - {".gitattributes"} == here
    assert not any(str(one).encode() in content for content in pushed.values() for one in (tmp_path, shared()))
    card = pushed["README.md"].decode()
    assert "license: mit" in card and f"recipe `{recipe}`" in card and "assets/curves.png" in card

    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    if (output / "adapter_config.json").exists():
        assert f'load_lora_weights("{PUSHED}")' in card
        pipe = ShowoT2IPipeline.from_pretrained(shared() / "model")
        before = pipe("a red apple", **options).images
        pipe.load_lora_weights(PUSHED)
        assert pipe.get_active_adapters()
        pipe("a red apple", **(options | {"generator": torch.Generator().manual_seed(0)}))
        assert before.shape[0] == 1
    else:
        pipe = ShowoT2IPipeline.from_pretrained(PUSHED)
        assert pipe("a red apple", **options).images.shape[0] == 1
        saved = load_file(output / "model" / "model.safetensors")
        assert all(torch.equal(saved[name], value) for name, value in pipe.model.state_dict().items() if name in saved)


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_the_learning_rate_of_a_recipe_needs_no_other_key(recipe):
    entries = read_recipe(recipe)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    options = entries.get("lr_scheduler_kwargs")
    schedule = get_scheduler(entries["lr_scheduler_type"], optimizer, 10, 100, scheduler_specific_kwargs=options)
    assert schedule.get_last_lr() == [0.0]


def of_small_images(recipe: str) -> list[str]:
    """What makes a recipe that trains on images alone a small one."""
    if recipe == "image-classifier":
        return ["image_size=16", "architecture={hidden_sizes: [8, 16], depths: [1, 1], num_stages: 2}"]
    architecture = {
        **{f"{part}_block_out_channels": [8, 8] for part in ("encoder", "decoder")},
        **{f"{part}_layers_per_block": [1, 1] for part in ("encoder", "decoder")},
        "norm_num_groups": 4,
    }
    if recipe == "vq-tokenizer":
        architecture |= {f"{part}_block_attention": [False, False] for part in ("encoder", "decoder")}
        architecture |= {"latent_channels": 8}
    codes = "codebook_bits=4" if recipe == "lfq-tokenizer" else "codebook_size=16"
    discriminator = ["discriminator.start=1", "discriminator.channels=8"]
    return ["image_size=16", codes, f"architecture={json.dumps(architecture)}", *discriminator]


@pytest.mark.slow
def test_a_classifier_and_tokenizers_run_from_files_to_a_repository_that_loads(tmp_path, hub_here):
    """The classifier's features are the perceptual loss of the tokenizers."""
    images, perceptual = shared() / "images", []
    for recipe, auto_class in (
        ("image-classifier", AutoModelForImageClassification),
        ("lfq-tokenizer", AutoModel),
        ("vq-tokenizer", AutoModel),
    ):
        output = tmp_path / recipe / "out"
        given = [f"output={output}", f"data={images}", "steps=3", "batch_size=2", f"push_to_hub={PUSHED}-{recipe}"]
        assert main(["train", recipe, *given, *COMMON, *of_small_images(recipe), *perceptual]) == 0
        rows = [row for row in log_rows(tmp_path / recipe) if "loss" in row]
        assert [row["step"] for row in rows] == [1, 2, 3]
        if perceptual:
            assert {"loss_perceptual", "loss_generator", "discriminator", "lecam"} <= rows[-1].keys()
        perceptual = perceptual or [f"perceptual={output}"]
        card = hub_here.repositories[f"{PUSHED}-{recipe}"]["README.md"].decode()
        assert f"{PUSHED}-{recipe}" in card and str(tmp_path) not in card
        model = auto_class.from_pretrained(f"{PUSHED}-{recipe}")
        saved = load_file(output / "model.safetensors")
        assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_a_diffusion_decoder_runs_from_files_to_a_repository_that_loads(tmp_path, hub_here):
    output = tmp_path / "out"
    small = "architecture={patch_size: 2, block_out_channels: [8, 8], norm_num_groups: 4}"
    given = [f"output={output}", f"model={shared() / 'model'}", f"data={shared() / 'images'}", f"push_to_hub={PUSHED}"]
    assert main(["train", "diffusion-decoder", *given, "steps=3", "batch_size=2", small, *COMMON]) == 0
    rows = [row for row in log_rows(tmp_path) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3] and {"loss_diffusion", "psnr"} <= rows[-1].keys()
    assert not any(str(tmp_path).encode() in content for content in hub_here.repositories[PUSHED].values())
    decoder = AutoModel.from_pretrained(PUSHED).eval()
    saved = load_file(output / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in decoder.state_dict().items())
    pipe = ShowoT2IPipeline.from_pretrained(shared() / "model", image_decoder=decoder)
    assert pipe("a red apple", num_inference_steps=1).images[0].size == (16, 16)


@pytest.mark.slow
def test_the_stages_follow_each_other_without_renaming_anything(files, tmp_path):
    first = train("stage1", tmp_path / "stage1", *entries_of("stage1", files))
    second = tmp_path / "stage2"
    entries = [*entries_of("stage2", files), f"model={first}"]
    assert main(["train", "stage2", f"output={second}", *COMMON, *entries]) == 0
    assert ShowoT2IPipeline.from_pretrained(second).processor.num_image_tokens == 16


def test_an_adapter_changes_images_and_is_all_that_is_saved(tmp_path):
    output = train(
        "lora", tmp_path / "out", f"data={shared() / 'images'}", "steps=4", "batch_size=4", "learning_rate=0.05"
    )
    assert {file.name for file in output.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "assets",
    }
    pipe = ShowoT2IPipeline.from_pretrained(shared() / "model")

    def logits():
        ids = pipe.processor.text_to_image(["a red apple"])["input_ids"]
        return pipe.model(ids).logits

    with torch.no_grad():
        before = logits()
        pipe.load_lora_weights(str(output))
        assert not torch.allclose(before, logits())
        pipe.unload_lora_weights()
        assert torch.equal(before, logits())


@pytest.mark.slow
def test_the_card_of_an_adapter_says_how_to_load_it_on_the_embedded_model(tmp_path):
    output = tmp_path / "out"
    given = [f"output={output}", f"data={shared() / 'images'}", "steps=1", "batch_size=1"]
    assert main(["train", "lora", *given, *COMMON]) == 0
    card = (output / "README.md").read_text()
    assert "from showo_hf import EMBEDDED_MODEL, ShowoT2IPipeline" in card
    assert "from_pretrained(EMBEDDED_MODEL)" in card
    pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    pipe.load_lora_weights(str(output))


def test_a_merged_adapter_is_a_pipeline(tmp_path):
    given = (f"data={shared() / 'images'}", "steps=2", "batch_size=2")
    output = train("lora", tmp_path / "out", *given, "merge=true")
    assert (output / "model_index.json").exists() and not (output / "adapter_config.json").exists()
    ShowoT2IPipeline.from_pretrained(output)
    adapter = train("lora", tmp_path / "adapter", *given)
    merged, apart = (
        next(line for line in (folder / "README.md").read_text().splitlines() if "trained parameters" in line)
        for folder in (output, adapter)
    )
    assert merged == apart and "| 0 of" not in merged


@pytest.mark.slow
def test_a_periodic_push_of_a_merged_adapter_is_the_result_so_far(tmp_path, hub_here):
    """The weights after the pushed step, and the training goes on as without a push."""
    images = shared() / "images"
    given = (f"data={images}", "batch_size=2", "merge=true", "lr_scheduler_type=constant", "learning_rate=0.05")
    pushing = (f"push_to_hub={PUSHED}", "push_steps=1")
    whole = train("lora", tmp_path / "whole" / "out", *given, "steps=2")
    first = train("lora", tmp_path / "first" / "out", *given, "steps=1")
    pushed = train("lora", tmp_path / "pushed" / "out", *given, "steps=2", *pushing)
    assert [commit[0] for commit in hub_here.commits[PUSHED]] == ["Step 1", "Step 2"]
    so_far = load(hub_here.commits[PUSHED][0][2]["model/model.safetensors"])
    base, expected = (load_file(folder / "model" / "model.safetensors") for folder in (shared() / "model", first))
    assert same_weights(so_far, expected) and not same_weights(so_far, base)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (whole, pushed))
    assert same_weights(first, second)


def test_the_bound_is_an_objective_and_its_scheduler_is_saved(tmp_path):
    output = train(
        "finetune", tmp_path / "out", f"data={shared() / 'images'}", "steps=2", "batch_size=2",
        "objective=mask_and_replace",
    )  # fmt: skip
    rows = log_rows(tmp_path)
    assert isinstance(ShowoT2IPipeline.from_pretrained(output).scheduler, MaskAndReplaceScheduler)
    assert math.log(tiny.CODES) < rows[0]["blind_guess"]["loss_t2i"] < 20  # the bound lies above the likelihood
    assert all(0 < row["loss_t2i"] < 100 for row in rows if "loss_t2i" in row)


def test_samples_show_the_prompts_and_the_questions(tmp_path):
    image = shared() / "images" / "00.png"
    train(
        "finetune", tmp_path / "out", f"data={shared() / 'images'}", "steps=4", "batch_size=2", "sample_steps=2",
        "prompts=[a red apple, two hearts]", f"questions=[['{image}', 'what is this?']]",
    )  # fmt: skip
    folder = tmp_path / "out-samples"
    names = {f"step-{step}-{number}.png" for step in (2, 4) for number in (0, 1)} | {"step-2.json", "step-4.json"}
    assert {file.name for file in folder.iterdir()} == names
    shown = json.loads((folder / "step-4.json").read_text())
    assert shown["prompts"] == ["a red apple", "two hearts"]
    pipe = ShowoMMUPipeline.from_pretrained(tmp_path / "out")
    with Image.open(image) as pil_image:
        answer = pipe(pil_image, "what is this?", max_new_tokens=64).texts[0]
    assert shown["answers"] == [["00.png", "what is this?", answer]]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "a red apple" in card and "what is this?" in card


@pytest.mark.slow
def test_samples_do_not_change_the_training(tmp_path):
    common = (f"data={shared() / 'images'}", "steps=3", "batch_size=2")
    plain = train("finetune", tmp_path / "plain", *common)
    sampled = train("finetune", tmp_path / "sampled", *common, "prompts=[a red apple]", "sample_steps=1")
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (plain, sampled))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_dry_run_prints_a_plan_and_writes_nothing(tmp_path, capsys):
    train("finetune", tmp_path / "out", f"data={shared() / 'images'}", "steps=50", "batch_size=2", "--dry-run")
    printed = capsys.readouterr().out
    for words in ("parameters", "tokens a step", "memory", "devices", "time of a step", "for 50 steps"):
        assert words in printed
    assert list(tmp_path.iterdir()) == []


def test_the_recipes_are_listed_in_a_line_each(capsys):
    assert main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
