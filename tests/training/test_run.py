import json
import shutil
import time

import pytest
import small_run
import torch
from safetensors.torch import load, load_file

from showo_hf import ShowoT2IPipeline
from showo_hf.training import checkpoints
from showo_hf.training.output_folders import checkpoint_root
from showo_hf.training.run import TrainingError, Unfinished


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    small_run.run(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


# Results


def test_the_result_is_a_pipeline(finished):
    pipe = ShowoT2IPipeline.from_pretrained(finished / "out")
    pipe.set_progress_bar_config(disable=True)
    images = pipe("a red apple", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
    assert images[0].size == (16, 16)
    names = sorted(path.name for path in finished.iterdir())
    assert names == ["out", "out-checkpoints", "out-log.jsonl"]


def test_a_new_run_in_an_old_place_has_a_log_of_its_own(folder):
    """Also the row of step 0, with the losses of a blind guess by another objective."""
    for name in ("out", "out-checkpoints"):
        shutil.rmtree(folder / name)
    old = small_run.log_rows(folder)
    changes = small_run.validated(objective="mask_and_replace", eval_on_start=True, steps=1, keep_best=False)
    small_run.run(folder, **changes)
    rows = small_run.log_rows(folder)
    assert [row["step"] for row in old] == list(range(7))
    assert [row["step"] for row in rows] == [0, 0, 1, 1] and rows[0]["blind_guess"] != old[0]["blind_guess"]
    assert ["eval_loss" in row for row in rows] == [False, True, False, True]


def test_a_finished_run_trains_nothing_and_gives_the_same_folder(folder, finished):
    before = small_run.files_of(folder)
    small_run.run(folder)
    after = small_run.files_of(folder)
    assert set(before) == set(after)
    changed = [name for name in before if before[name] != after[name]]
    assert changed in ([], ["out/README.md"])  # which names the time
    shutil.rmtree(folder / "out")
    small_run.run(folder)
    assert set(small_run.files_of(folder)) == set(before)
    assert small_run.same_weights(small_run.weights(folder / "out"), small_run.weights(finished / "out"))
    card = (folder / "out" / "README.md").read_text()
    assert "6 steps" in card or "| steps" in card or "6" in card


def test_two_runs_give_the_same_files(finished, tmp_path):
    small_run.run(tmp_path)
    first, second = small_run.files_of(finished / "out"), small_run.files_of(tmp_path / "out")
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] in ([], ["README.md"])
    small_run.run(tmp_path / "other", seed=1)
    assert not small_run.same_weights(
        small_run.weights(tmp_path / "other" / "out"), small_run.weights(tmp_path / "out")
    )


@pytest.mark.slow
def test_max_minutes_stops_and_the_same_command_continues(tmp_path, finished):
    with pytest.raises(Unfinished) as caught:
        small_run.run(tmp_path, max_minutes=1e-9)
    assert caught.value.step == 1 and caught.value.signal is None
    assert not (tmp_path / "out").exists()
    assert small_run.checkpoints(tmp_path) == ["checkpoint-1"]
    small_run.run(tmp_path)
    assert small_run.same_weights(small_run.weights(tmp_path / "out"), small_run.weights(finished / "out"))


def test_an_error_of_the_card_does_not_cost_the_result(folder, finished, monkeypatch, capsys):
    def plot_curves(*arguments, **options):
        raise RuntimeError("no font\nwas found")

    monkeypatch.setattr("showo_hf.training.training_card.plot_curves", plot_curves)
    shutil.rmtree(folder / "out")
    small_run.run(folder)
    assert small_run.same_weights(small_run.weights(folder / "out"), small_run.weights(finished / "out"))
    assert not (folder / "out" / "README.md").exists()
    assert "showo-hf: README.md of the result could not be written: no font was found" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_run_writes_lies_beside_an_output_with_a_slash_at_its_end(tmp_path):
    """Also the events and samples, so that a stopped run can go on."""
    options = {"output": f"{tmp_path / 'out'}/", "steps": 2, "prompts": ["a red apple"], "report_to": "tensorboard"}
    with pytest.raises(Unfinished):
        small_run.run(tmp_path, **options, max_minutes=1e-9)
    assert not (tmp_path / "out").exists()
    small_run.run(tmp_path, **options)
    names = ["out", "out-checkpoints", "out-log.jsonl", "out-samples", "out-tensorboard"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


# Options


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 2e-3}, "`learning_rate` was 0.001 and is 0.002"),
        ({"batch_size": 2}, "`batch_size` was {'t2i': 4} and is {'t2i': 2}"),
        ({"seed": 1}, "`seed` was 0 and is 1"),
        ({"condition_dropout": 0.2}, "`condition_dropout` was 0.1 and is 0.2"),
        ({"ema_decay": None}, "`ema_decay` was 0.9 and is None"),
        ({"gradient_accumulation_steps": 2}, "`batch_size` was {'t2i': 4} and is {'t2i': 8}"),
        ({"kind": "lora"}, "`rank` was None and is 16"),
        ({"steps": 12}, "`steps` was 6 and is 12. The learning rate depends on `steps`."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_options_than_those_of_the_checkpoint_are_refused(folder, not_loaded, changes, named):
    before = small_run.files_of(folder)
    with pytest.raises(TrainingError) as caught:
        small_run.run(folder, **changes)
    assert named in str(caught.value)
    assert small_run.files_of(folder) == before


@pytest.mark.slow
def test_options_that_do_not_change_the_weights_may_change(tmp_path, finished):
    with pytest.raises(Unfinished):
        small_run.run(tmp_path, max_minutes=1e-9)
    small_run.run(
        tmp_path,
        save_steps=5,
        logging_steps=2,
        save_total_limit=1,
        max_minutes=10,
        bad_step="skip",
        max_broken=3,
        dataloader_num_workers=1,
        validation_data=str(small_run.shared() / "images"),
        eval_steps=3,
        save_dtype="bfloat16",
    )
    result = small_run.weights(tmp_path / "out")
    expected = {
        name: value if name.startswith("image_tokenizer.") else value.bfloat16()
        for name, value in small_run.weights(finished / "out").items()
    }
    assert small_run.same_weights(result, expected), "rounded, the image tokenizer would give other tokens"
    assert small_run.checkpoints(tmp_path) == ["checkpoint-6"]
    rows = [json.loads(line) for line in (tmp_path / "out-log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row][-2:] == [4, 6]
    assert [row["step"] for row in rows if "eval_loss" in row] == [3, 6]


@pytest.mark.slow
def test_keep_best_may_be_switched_on_later(tmp_path):
    options = small_run.validated(eval_steps=1, steps=4)
    with pytest.raises(Unfinished):
        small_run.run(tmp_path, **{**options, "keep_best": False}, max_minutes=1e-9)
    small_run.run(tmp_path, **options)
    best = json.loads((tmp_path / "out-checkpoints" / "best" / "best.json").read_text())
    assert best["step"] > 1


@pytest.mark.slow
def test_losses_of_other_validation_data_are_not_compared(tmp_path):
    """Texts count a tenth, so no loss of images is lower."""
    images = str(small_run.shared() / "images")
    options = small_run.validated(eval_steps=1, steps=3)
    with pytest.raises(Unfinished):
        small_run.run(tmp_path, **{**options, "validation_data": {"lm": images}}, max_minutes=1e-9)
    before = checkpoints.read_json(tmp_path / "out-checkpoints" / "best" / "best.json")
    small_run.run(tmp_path, **options)
    best = checkpoints.read_json(tmp_path / "out-checkpoints" / "best" / "best.json")
    assert before["step"] == 1 and best["step"] > 1 and best["loss"] > 2 * before["loss"]


@pytest.mark.slow
def test_a_periodic_push_has_the_best_weights_so_far(tmp_path, hub_here):
    """The learning rate spoils the weights. The training goes on as without a push."""
    options = small_run.validated(eval_steps=1, steps=4, learning_rate=1.0, warmup_steps=1, ema_decay=None)
    options["bad_step"] = "skip"
    small_run.run(tmp_path, **options)
    pushing = {"push_to_hub": "someone/showo-mine", "push_steps": 2}
    small_run.run(tmp_path / "pushed", **options, **pushing)
    best = checkpoints.read_json(tmp_path / "out-checkpoints" / "best" / "best.json")
    assert best["step"] == 1
    commits = hub_here.commits["someone/showo-mine"]
    assert [commit[0] for commit in commits] == ["Step 2", "Step 4"]
    result = small_run.weights(tmp_path / "out")
    assert all(small_run.same_weights(load(commit[2]["model/model.safetensors"]), result) for commit in commits)
    first, second = (
        load_file(folder / "out-checkpoints" / "checkpoint-4" / "model.safetensors")
        for folder in (tmp_path, tmp_path / "pushed")
    )
    assert small_run.same_weights(first, second)


@pytest.mark.slow
def test_another_validation_goes_on_after_an_early_stop(tmp_path):
    options = small_run.validated(eval_steps=1, steps=8, early_stop=1, learning_rate=0.0)
    small_run.run(tmp_path, **options)
    rows = [row["step"] for row in small_run.log_rows(tmp_path) if "eval_loss" in row]
    assert rows == [1, 2]
    small_run.run(tmp_path, **{**options, "validation_rows": 4})
    assert [row["step"] for row in small_run.log_rows(tmp_path) if "eval_loss" in row] == [1, 2, 3, 4]


@pytest.mark.slow
def test_best_weights_of_another_step_than_the_checkpoint_knows_are_not_the_result(tmp_path):
    """As of a run that was killed between a validation and the next checkpoint. The learning rate spoils the weights."""
    options = small_run.validated(eval_steps=1, steps=2, learning_rate=1.0, ema_decay=None, warmup_steps=1)
    options["bad_step"] = "skip"
    with pytest.raises(Unfinished):
        small_run.run(tmp_path, **options, max_minutes=1e-9)
    best = tmp_path / "out-checkpoints" / "best"
    document = checkpoints.read_json(best / "best.json")
    assert document["step"] == 1
    checkpoints.write_json(best / "best.json", {**document, "step": 2, "loss": document["loss"] / 2})
    (best / checkpoints.CHECKSUMS).unlink()
    checkpoints.seal(best)
    small_run.run(tmp_path, **{**options, "eval_steps": 100})
    small_run.run(tmp_path / "plain", **{**options, "eval_steps": 100, "keep_best": False})
    assert small_run.same_weights(*(small_run.weights(folder / "out") for folder in (tmp_path, tmp_path / "plain")))


def test_without_resume_checkpoints_are_refused(folder, not_loaded):
    before = small_run.files_of(folder)
    with pytest.raises(TrainingError, match="'out-checkpoints' holds checkpoints, and `resume` is false"):
        small_run.run(folder, resume=False)
    assert small_run.files_of(folder) == before


@pytest.mark.slow
def test_evaluation_at_the_start_is_not_repeated_by_a_resumed_run(tmp_path):
    options = small_run.validated(eval_on_start=True, keep_best=None, steps=3, eval_steps=1)
    with pytest.raises(Unfinished):
        small_run.run(tmp_path, **options, max_minutes=1e-9)
    small_run.run(tmp_path, **options)
    assert [row["step"] for row in small_run.log_rows(tmp_path) if "eval_loss" in row] == [0, 1, 2, 3]


# Outputs and data


def test_a_folder_that_is_not_a_result_of_the_run_is_not_replaced(tmp_path, not_loaded):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("the only copy")
    with pytest.raises(TrainingError, match="The folder '.*out' exists and is not a result of this run"):
        small_run.run(tmp_path)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "the only copy"


def test_another_pipeline_is_not_replaced(tmp_path, not_loaded):
    shutil.copytree(small_run.shared() / "model", tmp_path / "out")
    before = small_run.files_of(tmp_path / "out")
    with pytest.raises(TrainingError, match="is not a result of this run"):
        small_run.run(tmp_path)
    with pytest.raises(TrainingError, match="is the model that is trained"):
        small_run.run(tmp_path, model=str(tmp_path / "out"))
    assert small_run.files_of(tmp_path / "out") == before


def test_a_folder_with_other_files_is_not_replaced_by_a_resumed_run(folder, not_loaded):
    (folder / "out" / "model_index.json").unlink()
    with pytest.raises(TrainingError, match="is not a result of this run"):
        small_run.run(folder)


def test_a_run_that_had_ended_says_so(tmp_path, capfd):
    small_run.run(tmp_path, steps=1)
    assert "had ended" not in capfd.readouterr().err
    small_run.run(tmp_path, steps=1)
    told = "showo-hf: the run had ended at step 1, so no more steps are trained; another `output` trains anew"
    assert told in capfd.readouterr().err.splitlines()


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    small_run.run(tmp_path, steps=1)
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.parametrize("name", ["out", "out-checkpoints"])
def test_files_in_the_place_of_folders_are_refused(tmp_path, not_loaded, name):
    (tmp_path / name).write_text("a file")
    with pytest.raises(TrainingError, match=f"`output` must be a folder, but '.*{name}' is a file"):
        small_run.run(tmp_path)
    assert (tmp_path / name).read_text() == "a file"


def test_an_output_below_a_file_is_refused(tmp_path, not_loaded):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(TrainingError, match="`output` must be in a folder that can be written to; .*Not a directory"):
        small_run.run(tmp_path / "file" / "below")


def test_an_output_in_a_system_folder_is_refused(tmp_path, not_loaded):
    """Not even the administrator can create folders in /proc."""
    with pytest.raises(TrainingError, match="`output` must be in a folder that can be written to; '/proc' cannot"):
        small_run.run(tmp_path, output="/proc/showo-out")


def test_a_model_that_no_one_can_have_is_refused(tmp_path, not_loaded):
    with pytest.raises(ValueError, match="`model` must be a pipeline folder, a name on the Hub, or 'embedded'"):
        small_run.run(tmp_path, model="no/such/model")


def test_missing_data_is_refused_before_the_model_is_loaded(tmp_path, not_loaded):
    started = time.process_time()
    with pytest.raises(FileNotFoundError, match="got '.*no-such-folder'"):
        small_run.run(tmp_path, data=str(tmp_path / "no-such-folder"))
    with pytest.raises(FileNotFoundError, match="got '.*no-such-folder'"):
        small_run.run(tmp_path, validation_data=str(tmp_path / "no-such-folder"))
    images = small_run.write_images(tmp_path / "images")
    with pytest.raises(ValueError, match="must have a column 'caption' for t2i, but its columns are image, text"):
        small_run.run(tmp_path, data={"t2i": {"path": str(images), "text_column": "caption"}})
    (images / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="must have a metadata.jsonl"):
        small_run.run(tmp_path, data=str(images))
    assert time.process_time() - started < 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_model_with_other_weights_is_refused(folder, tmp_path):
    """The folder of the model was replaced by another one."""
    model = small_run.shared() / "model"
    (folder / "out-checkpoints" / "checkpoint-6").rename(tmp_path / "away")
    shutil.copytree(model, tmp_path / "kept")
    try:
        config = json.loads((model / "model" / "config.json").read_text())
        config["text_config"]["num_hidden_layers"] = 1
        (model / "model" / "config.json").write_text(json.dumps(config))
        with pytest.raises(Exception, match="is of another model: .* tensors differ"):
            small_run.run(folder)
    finally:
        shutil.rmtree(model)
        shutil.copytree(tmp_path / "kept", model)


def test_the_folder_of_checkpoints_lies_beside_the_output(tmp_path):
    assert checkpoint_root(tmp_path / "a.b") == tmp_path / "a.b-checkpoints"
