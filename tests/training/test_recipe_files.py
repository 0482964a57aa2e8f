import dataclasses
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from showo_hf.training.configs import FinetuneConfig
from showo_hf.training.kinds import KINDS, config_keys
from showo_hf.training.recipe_entries import OTHER_NAMES, REFUSED, RecipeError, read_recipe, shipped_recipes
from showo_hf.training.recipe_files import allowed_types, load_recipe
from showo_hf.training.results import shipped_settings
from showo_hf.training.trainer_arguments import trainer_arguments


#: The arguments of `TrainingArguments` that the trainers here, or the parts of transformers' that they use, read.
USED = frozenset(
    "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args optim_target_modules"
    " weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm gradient_accumulation_steps bf16 fp16 tf32"
    " activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs"
    " torch_compile torch_compile_backend torch_compile_mode neftune_noise_alpha logging_strategy logging_steps"
    " logging_first_step log_on_each_node log_level log_level_replica disable_tqdm report_to run_name project"
    " trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay eval_on_start"
    " save_steps save_total_limit push_to_hub hub_token hub_private_repo hub_revision metric_for_best_model"
    " full_determinism seed use_cpu accelerator_config parallelism_config dataloader_num_workers"
    " ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout"
    " fsdp fsdp_config deepspeed debug skip_memory_metrics".split()
)

GIVEN = ("data=images", "output=model", "steps=5")


def test_every_shipped_recipe_loads_with_the_keys_that_it_needs():
    recipes = shipped_recipes()
    assert {"finetune", "lora", "concept", "instruct", "stage1", "stage2", "stage3", "instruct1", "instruct2"} <= set(
        recipes
    )
    for name, description in recipes.items():
        entries = read_recipe(name)
        rows = entries["batch_size"]
        sources = [f"data={dict.fromkeys(rows, 'x')}" if isinstance(rows, dict) else "data=x"]
        word = ["word=sks"] if entries["kind"] == "concept" else []
        steps = ["steps=7"] if "steps" not in entries else []
        config = load_recipe(name, [*sources, *word, *steps, "output=out"])
        assert type(config) is KINDS[entries["kind"]]
        assert description.endswith(".") and len(description) < 100


@pytest.mark.parametrize(
    ("recipe", "rows", "rate", "steps", "warmup"),
    [
        ("stage1", (15, 4, 10), 1e-4, 500_000, 5000),
        ("stage2", (10, 4, 10), 1e-4, 1_000_000, 5000),
        ("stage3", (10, 4, 10), 2e-5, 50_000, 5000),
        ("instruct1", (4, 2, 7), 2e-5, 10_000, 1000),
        ("instruct2", (4, 2, 6), 5e-5, 14_000, 1000),
        ("instruct1-512", (5, 2, 5), 2e-5, 14_000, 1000),
        ("instruct2-512", (5, 2, 5), 5e-5, 16_000, 1000),
    ],
)
def test_the_stages_are_as_published(recipe, rows, rate, steps, warmup):
    config = load_recipe(recipe, ["data={t2i: a, lm: b, mmu: c}", "output=out"])
    assert tuple(config.batch_size.values()) == rows
    assert config.steps == steps
    assert config.loss_weights == {"t2i": 1.0, "lm": 0.1, "mmu": 1.0, "mixed": 1.0}
    assert (config.condition_dropout, config.masking_schedule, config.ema_decay) == (0.1, "cosine", None)
    published = {
        "learning_rate": rate,
        "warmup_steps": warmup,
        "lr_scheduler_type": "cosine",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.01,
        "max_grad_norm": 0.0,
        "bf16": True,
    }
    assert {name: config.training[name] for name in published} == published
    assert config.image_size == (512 if "512" in recipe else None)


def test_the_card_knows_the_settings_of_a_stage_whatever_tasks_are_trained():
    one_task = shipped_settings(load_recipe("stage2", ["data={t2i: a}", "batch_size=2", "output=out"]))
    all_tasks = shipped_settings(load_recipe("stage2", ["data={t2i: a, lm: b, mmu: c}", "output=out"]))
    assert one_task == all_tasks and one_task["batch_size"] == {"t2i": 10, "lm": 4, "mmu": 10}


def test_values_take_the_types_of_their_keys():
    config = load_recipe("finetune", [*GIVEN, "learning_rate=1e-4", "save_steps=50", "seed=3", "resume=false"])
    assert config.training["learning_rate"] == 1e-4
    assert (config.seed, config.resume) == (3, False)
    assert config.data == {"t2i": [{"path": "images"}]}
    assert config.batch_size == {"t2i": 8}


def test_texts_that_look_like_numbers_stay_as_they_are_written():
    entries = ("data=images", "steps=5", "output=1.10", "word=007", "kind_of=2026-01-31", "hub_revision=1_000 # a tag")
    config = load_recipe("concept", entries)
    assert (config.output, config.word, config.kind_of) == ("1.10", "007", "2026-01-31")
    assert config.training["hub_revision"] == "1_000"


@pytest.mark.parametrize("value", ["1.10", "007", "2026-01-31"])
def test_a_number_in_a_file_is_no_text(tmp_path, value):
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: lora\nhub_revision: {value}\n", encoding="utf-8")
    with pytest.raises(
        RecipeError, match="`hub_revision` must be a text or empty, got .*; a number or a date needs quo"
    ):
        load_recipe(str(file), GIVEN)
    assert load_recipe(str(file), [*GIVEN, f"hub_revision={value}"]).training["hub_revision"] == value
    file.write_text(f"base: lora\nhub_revision: '{value}'\n", encoding="utf-8")
    assert load_recipe(str(file), GIVEN).training["hub_revision"] == value


@pytest.mark.parametrize("output", ["runs/model/", "runs/model/.", "runs//model"])
def test_the_output_has_no_slash_at_its_end(output):
    """Else the folders beside it would lie in it."""
    assert load_recipe("finetune", ["data=images", "steps=5", f"output={output}"]).output == str(Path("runs/model"))


@pytest.mark.parametrize("output", ["''", ".", "/", "..", "runs/.."])
def test_an_output_without_a_name_is_refused(output):
    with pytest.raises(RecipeError, match="`output` must be the path of a folder with a name, got"):
        load_recipe("finetune", ["data=images", "steps=5", f"output={output}"])


def test_entries_of_mappings_are_set_one_by_one():
    config = load_recipe("stage1", ["data={t2i: a, lm: b, mmu: c}", "output=out", "batch_size.t2i=2"])
    assert config.batch_size == {"t2i": 2, "lm": 4, "mmu": 10}


def test_sources_can_be_lists_with_weights():
    config = load_recipe("finetune", ["data=[a, {path: b, weight: 3}]", "output=out", "steps=5"])
    assert config.data == {"t2i": [{"path": "a"}, {"path": "b", "weight": 3}]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("stepz=5",), "no key 'stepz' in a recipe of the kind 'finetune'; did you mean 'steps'?"),
        (("learning_rat=5",), "did you mean 'learning_rate'?"),
        (("max_steps=5",), "`max_steps` is called `steps` in a recipe, which is given as well"),
        (("hub_model_id=a/b",), "`hub_model_id` is called `push_to_hub` in a recipe."),
        (("label_smoothing_factor=0.1",), "`label_smoothing_factor` has no effect here"),
        (("steps=six",), "`steps` is given twice"),
        (("seed=one",), "`seed` must be a whole number, got 'one'"),
        (("seed=4294967296",), "`seed` must be at most 4,294,967,295, got 4294967296"),
        (("bf16=maybe",), "`bf16` must be true or false, got 'maybe'"),
        (("ema_decay=2",), "`ema_decay` must be a number from 0 to 1, got 2.0"),
        (("batch_size=0",), "`batch_size.t2i` must be an integer of at least 1, got 0"),
        (("batch_size.lm=4",), "`batch_size` must name the tasks of `data` (t2i), got lm"),
        (("keep_best=true",), "need `validation_data`"),
        (
            ("validation_data=a", "keep_best=true", "eval_strategy=epoch"),
            "need the `eval_strategy` 'steps', got 'epoch'",
        ),
        (("validation_data=a", "early_stop=2", "eval_strategy='no'"), "need the `eval_strategy` 'steps', got 'no'"),
        (("save_strategy=steps",), "`save_strategy` has no effect here: checkpoints are written every `save_steps`"),
        (("per_device_eval_batch_size=2",), "`per_device_eval_batch_size` has no effect here"),
        (("greater_is_better=true",), "`greater_is_better` has no effect here"),
        (("bf16_full_eval=true",), "`bf16_full_eval` has no effect here"),
        (("fp16_full_eval=true",), "`fp16_full_eval` has no effect here"),
        (("dataloader_pin_memory=false",), "`dataloader_pin_memory` has no effect here"),
        (("dataloader_prefetch_factor=4",), "`dataloader_prefetch_factor` has no effect here"),
        (("dataloader_persistent_workers=true",), "`dataloader_persistent_workers` has no effect here"),
        (("include_num_input_tokens_seen=true",), "`include_num_input_tokens_seen` has no effect here"),
        (("torch_empty_cache_steps=5",), "`torch_empty_cache_steps` has no effect here"),
        (("metric_for_best_model=loss_t2i",), "`metric_for_best_model` has no effect here"),
        (("objective=dreams",), "`objective` must be one of masked, mask_and_replace, got 'dreams'"),
        (("prompts",), "must be key=value, got 'prompts'"),
        (("prompts=[a",), "The value of `prompts` is not YAML"),
        (("prompts=2024-99-99",), "The value of `prompts` is not YAML"),
        (("bad_step=ignore",), "`bad_step` must be one of skip, stop"),
        (("prompts=[1]",), "`prompts` must be a list of texts, got [1]"),
        (("questions=[1]",), "`questions` must be pairs of an image file and a question, got [1]"),
        (("questions=[[a.png, 1]]",), "`questions` must be pairs"),
        (("trained='['",), "`trained` must be a regular expression, got '['"),
        (("masking_schedule=wavy",), "`masking_schedule` must be one of"),
        (("sample_guidance=.nan",), "`sample_guidance` must be a finite number"),
    ],
)
def test_wrong_entries_are_refused_with_what_is_allowed(entries, message):
    with pytest.raises(RecipeError) as error:
        load_recipe("finetune", [*GIVEN, *entries])
    assert message in str(error.value)


def test_a_template_that_is_no_text_is_refused():
    with pytest.raises(RecipeError, match=r"`templates` must be a list of texts, got \[1\]"):
        load_recipe("concept", [*GIVEN, "word=sks", "templates=[1]"])


def test_an_adapter_has_no_dtype_of_the_result_unless_it_is_merged():
    for recipe, more in (("lora", []), ("concept", ["word=sks"])):
        given = [*GIVEN, *more, "save_dtype=bfloat16"]
        with pytest.raises(RecipeError, match="`save_dtype` needs `merge`: .*, got 'bfloat16'"):
            load_recipe(recipe, given)
        assert load_recipe(recipe, [*given, "merge=true"]).save_dtype == "bfloat16"


def test_loss_weights_that_are_not_given_are_the_published_ones():
    config = load_recipe("finetune", ["data={t2i: a, mmu: b}", "output=out", "steps=5", "loss_weights.t2i=3"])
    assert config.loss_weights == {"t2i": 3, "lm": 0.1, "mmu": 1.0, "mixed": 1.0}


@pytest.mark.parametrize("missing", ["data", "output", "steps"])
def test_what_is_missing_is_named(missing):
    with pytest.raises(RecipeError, match=f"`{missing}` is missing"):
        load_recipe("finetune", [entry for entry in GIVEN if not entry.startswith(missing)])


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="no recipe 'lroa'; did you mean 'lora'?"):
        load_recipe("lroa", GIVEN)


def test_a_file_is_a_recipe_and_can_stand_on_another(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("# Mine.\nbase: lora\nrank: 4\nlearning_rate: 1e-3\n", encoding="utf-8")
    config = load_recipe(str(file), GIVEN)
    assert (config.rank, config.training["learning_rate"]) == (4, 1e-3)
    assert config.training["warmup_steps"] == 20  # of the shipped recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: lara\n", "`kind` must be one of .*; did you mean 'lora'?"),
        ("[1, 2]\n", "must be a mapping"),
        ("a: [\n", "is not YAML"),
        ("kind: !!python/object/apply:os.system ['true']\n", "is not YAML"),
    ],
)
def test_files_that_are_no_recipes_are_refused(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(file), GIVEN)


def test_a_recipe_that_stands_on_itself_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: {file}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="its own `base`"):
        load_recipe(str(file), GIVEN)


def test_every_name_that_is_refused_or_renamed_is_one_of_transformers():
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(OTHER_NAMES) <= theirs
    assert set(REFUSED) <= theirs
    assert set(OTHER_NAMES.values()) <= set(config_keys("finetune"))


def test_every_argument_of_transformers_is_used_or_refused():
    """A new version's arguments are looked at before they are allowed."""
    theirs = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert not USED & (REFUSED.keys() | OTHER_NAMES.keys())
    assert USED | REFUSED.keys() | OTHER_NAMES.keys() == theirs


def test_a_learning_rate_that_follows_a_metric_has_one():
    config = load_recipe("finetune", [*GIVEN, "lr_scheduler_type=greedy", "metric_for_best_model=loss_t2i"])
    assert config.training["metric_for_best_model"] == "loss_t2i"


def test_the_docstrings_name_every_key():
    for kind in KINDS:
        classes = [one for one in KINDS[kind].__mro__ if issubclass(one, FinetuneConfig.__mro__[1])]
        documented = "\n".join(one.__doc__ for one in classes)
        for name in config_keys(kind):
            assert f" {name} (" in documented or f" {name}," in documented or f", {name} (" in documented, (kind, name)


def test_shipped_recipes_hold_no_entry_twice():
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node, deep=False):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return yaml.SafeLoader.construct_mapping(loader, node, deep)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    from importlib import resources

    for name in shipped_recipes():
        text = (resources.files("showo_hf.training") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        yaml.load(text, Loader=Strict)


def test_the_arguments_that_are_read_from_source_are_those_of_transformers():
    read = trainer_arguments()
    fields = {one.name: one.type for one in dataclasses.fields(TrainingArguments) if one.init}
    assert set(read) == set(fields)
    assert {"learning_rate", "bf16", "lr_scheduler_kwargs", "report_to"} <= set(read)
    for name, types in read.items():
        assert types in ((), allowed_types(fields[name])), name
    assert sum(types == () for types in read.values()) < len(read) / 4
