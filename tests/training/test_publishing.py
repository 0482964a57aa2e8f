"""Uploads of trained models to the local server of hub_server.py."""

import json
import logging
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny
from hub_server import Fault, environment_of, user_of
from huggingface_hub import constants

from showo_hf.training.periodic_publishing import PeriodicPublisher
from showo_hf.training.publishing import (
    NotReachableError,
    PublishError,
    check_destination,
    files_of,
    is_uploaded,
    publish,
)


CARD = "---\nlicense: mit\n---\n# A model\n"


def adapter(folder: Path, weights=b"weights", name="adapter_model.safetensors") -> Path:
    """A small folder with the files of an adapter."""
    (folder / "assets").mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "README.md").write_text(CARD)
    (folder / "assets" / "curves.png").write_bytes(b"png")
    (folder / name).write_bytes(weights)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Before the training


def test_a_destination_may_exist_or_not(hub_here):
    assert check_destination("someone/new").exists is False
    assert check_destination("new").repo_id == "someone/new"
    assert check_destination("lab/new").warning is None
    hub_here.repositories["someone/old"] = {}
    assert check_destination("someone/old").exists is True
    assert set(hub_here.repositories) == {"someone/old"}  # nothing is created


@pytest.mark.parametrize("name", ["a/b/c", "", "bad name", "someone/--", "someone/x.git"])
def test_an_invalid_name_is_refused_before_anything_is_asked(hub_here, name, tmp_path):
    with pytest.raises(ValueError, match="`push_to_hub` must be ORG/NAME or NAME, got"):
        check_destination(name)
    with pytest.raises(ValueError, match="`push_to_hub` must be ORG/NAME or NAME, got"):
        publish(adapter(tmp_path / "out"), name)
    assert hub_here.requests == []


def test_a_token_that_may_only_read_is_refused(hub_here):
    hub_here.repositories["someone/old"] = {}
    for name in ("someone/old", "someone/new"):
        with pytest.raises(PublishError, match="the token 'test' of someone may only read"):
            check_destination(name, token="hf_read")


def test_an_unknown_token_is_refused(hub_here):
    with pytest.raises(PublishError, match="does not know the token"):
        check_destination("someone/new", token="hf_other")


def test_a_missing_token_is_refused(hub_here, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match="hf auth login"):
        check_destination("someone/new")


def test_the_repositories_of_others_are_refused(hub_here):
    with pytest.raises(PublishError, match="someone may not create repositories of other, but of: someone, lab"):
        check_destination("other/new")
    hub_here.repositories["other/old"] = {}
    with pytest.raises(PublishError, match="may not write to other/old"):
        check_destination("other/old")


def test_a_fine_grained_token_may_write_where_it_says(hub_here):
    scope = {"entity": {"type": "user", "name": "someone"}, "permissions": ["repo.content.read", "repo.write"]}
    hub_here.tokens["hf_test"] = user_of("fineGrained", fineGrained={"scoped": [scope], "global": []})
    assert check_destination("someone/new").exists is False
    with pytest.raises(PublishError, match="the token may not write to repositories of lab"):
        check_destination("lab/new")


def test_without_a_network_the_check_warns(hub_here, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    warning = check_destination("someone/new").warning
    assert "could not be reached" in warning and "The upload is tried at the end" in warning
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "`HF_HUB_OFFLINE` is set" in check_destination("someone/new").warning


@pytest.mark.parametrize("kind", [503, "cut", "hang"])
def test_a_server_that_fails_now_may_work_at_the_end(hub_here, kind):
    hub_here.faults.append(Fault("whoami", kind))
    assert check_destination("someone/new", seconds=0.5).warning is not None


# The upload


def test_the_folder_is_one_commit(hub_here, tmp_path):
    folder = adapter(tmp_path / "out")
    result = publish(folder, "someone/new", commit_message="step 500")
    assert result.uploaded and result.repo_id == "someone/new" and result.commit == f"{1:040x}"
    assert result.url == f"{constants.ENDPOINT}/someone/new" and result.url in result.message
    assert hub_here.repositories["someone/new"] == contents(folder)
    assert [commit[0] for commit in hub_here.commits["someone/new"]] == ["step 500"]


def test_a_name_alone_is_a_repository_of_the_user(hub_here, tmp_path):
    assert publish(adapter(tmp_path / "out"), "new").repo_id == "someone/new"


def test_a_branch_is_made(hub_here, tmp_path):
    folder = adapter(tmp_path / "out")
    for weights in (b"first", b"second"):
        adapter(folder, weights)
        assert publish(folder, "someone/new", revision="run-2").url.endswith("/tree/run-2")
        assert hub_here.branches["someone/new", "run-2"] == contents(folder)
    assert hub_here.repositories["someone/new"] == {}


def test_the_next_upload_replaces_the_weights_and_keeps_other_files(hub_here, tmp_path):
    first = adapter(tmp_path / "first", name="model-00001-of-00002.safetensors")
    (first / "assets" / "sample-1.png").write_bytes(b"old")
    publish(first, "someone/new")
    others = {"LICENSE.txt": b"mine", "pytorch_model.bin": b"pickle", "examples/assets/a.png": b"mine"}
    hub_here.repositories["someone/new"] |= others
    second = adapter(tmp_path / "second")
    publish(second, "someone/new")
    kept = {name: others[name] for name in ("LICENSE.txt", "examples/assets/a.png")}
    assert hub_here.repositories["someone/new"] == contents(second) | kept


def test_the_same_folder_again_makes_no_commit(hub_here, tmp_path):
    folder = adapter(tmp_path / "out")
    commits = {publish(folder, "someone/new").commit for _ in range(2)}
    assert len(commits) == len(hub_here.commits["someone/new"]) == 1


def test_only_listed_files_are_uploaded(hub_here, tmp_path):
    folder = adapter(tmp_path / "out")
    before = contents(folder)
    secrets = [".env", ".cache/token.json", "optimizer.bin", "optimizer.safetensors", "training_args.bin", "model.pkl"]
    secrets += ["checkpoint-50/adapter_model.safetensors", "trainer_state.json", "rng_state_0.json", "notes.docx"]
    for name in secrets:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"secret")
    (tmp_path / "private.txt").write_bytes(b"secret")
    (folder / "link.txt").symlink_to(tmp_path / "private.txt")
    result = publish(folder, "someone/new")
    assert set(result.left_out) == {*secrets, "link.txt"}
    assert hub_here.repositories["someone/new"] == before


@pytest.mark.parametrize(
    ("name", "uploaded"),
    [
        ("model/model.safetensors", True),
        ("scheduler/scheduler_config.json", True),
        ("processor/chat_template.jinja", True),
        ("processor/tokenizer.model", True),
        ("processor/merges.txt", True),
        ("pytorch_model.bin", False),
        ("other.model", False),
        ("optimizer-00001-of-00002.safetensors", False),
        ("run.py", False),
        (".git/config.json", False),
    ],
)
def test_which_files_are_uploaded(name, uploaded):
    assert is_uploaded(name) is uploaded


def test_a_folder_that_is_no_finished_model_is_refused(hub_here, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        publish(tmp_path / "absent", "someone/new")
    folder = adapter(tmp_path / "out")
    index = {"weight_map": {"a": "adapter_model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names model-2.safetensors, which it lacks"):
        publish(folder, "someone/new")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights in safetensors"):
        publish(folder, "someone/new")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="one of model_index.json, adapter_config.json, config.json"):
        publish(folder, "someone/new")
    assert hub_here.requests == []


# Faults


@pytest.mark.parametrize(
    "request_pattern", ["repos/create", "GET /api/models/someone/new", "validate-yaml", "/commit/"]
)
@pytest.mark.parametrize("kind", [500, 429, "cut"])
def test_an_error_that_passes_is_tried_again(hub_here, tmp_path, request_pattern, kind):
    hub_here.faults.append(Fault(request_pattern, kind, times=2))
    folder = adapter(tmp_path / "out")
    assert publish(folder, "someone/new", wait=0.01).uploaded
    assert hub_here.faults[0].times == 0
    assert hub_here.repositories["someone/new"] == contents(folder)
    assert len(hub_here.commits["someone/new"]) == 1


def test_a_cut_in_the_weights_is_tried_again(hub_here, tmp_path):
    folder = adapter(tmp_path / "out", weights=bytes(3_000_000))
    hub_here.faults.append(Fault("PUT /objects/", "cut"))
    assert publish(folder, "someone/new").uploaded and hub_here.faults[0].times == 0
    assert hub_here.repositories["someone/new"] == contents(folder)


def test_a_commit_whose_answer_is_lost_is_not_repeated(hub_here, tmp_path):
    hub_here.faults.append(Fault("/commit/", "lost"))
    folder = adapter(tmp_path / "out")
    result = publish(folder, "someone/new", wait=0.01)
    assert result.uploaded and result.commit == f"{1:040x}"
    assert len(hub_here.commits["someone/new"]) == 1 and hub_here.repositories["someone/new"] == contents(folder)


@pytest.mark.parametrize("kind", [500, "cut"])
def test_a_lasting_fault_leaves_the_repository_unchanged_and_names_the_command(hub_here, tmp_path, kind):
    old = adapter(tmp_path / "old", b"old")
    publish(old, "someone/new")
    hub_here.faults.append(Fault("/commit/", kind, times=100))
    folder = adapter(tmp_path / "my out", b"new")
    result = publish(folder, "someone/new", retries=2, wait=0.01, private=True)
    assert not result.uploaded and result.commit is None and hub_here.faults[0].times == 97
    assert hub_here.repositories["someone/new"] == contents(old)
    command = result.message.split("`")[1]
    assert shlex.split(command) == ["hf", "upload", "someone/new", str(folder), "--private"]
    with pytest.raises(NotReachableError, match="hf upload someone/new"):
        publish(folder, "someone/new", retries=0, allow_offline=False)
    hub_here.faults.clear()
    assert publish(folder, "someone/new").uploaded
    assert hub_here.repositories["someone/new"] == contents(folder)


def test_another_commit_in_between_gives_no_mixture(hub_here, tmp_path):
    """Files that equal the parent's are not sent. If another run changes them meanwhile, they must be sent after all."""
    publish(adapter(tmp_path / "first", b"1"), "someone/new")
    ours = adapter(tmp_path / "ours", b"1")
    (ours / "adapter_config.json").write_text('{"ours": 1}')

    def intervene():
        files = hub_here.repositories["someone/new"] | {"adapter_model.safetensors": b"2"}
        hub_here.commits["someone/new"].append(("theirs", "main", files))
        hub_here.repositories["someone/new"] = files

    hub_here.faults.append(Fault("/commit/", intervene))
    assert publish(ours, "someone/new", commit_message="ours", wait=0.01).uploaded
    assert hub_here.repositories["someone/new"] == contents(ours)
    assert [commit[0] for commit in hub_here.commits["someone/new"]][1:] == ["theirs", "ours"]


@pytest.mark.parametrize(("token", "text"), [("hf_read", "may not write to someone/new"), ("hf_x", "does not know")])
def test_a_refusal_is_raised_at_once(hub_here, tmp_path, token, text):
    with pytest.raises(PublishError, match=text) as raised:
        publish(adapter(tmp_path / "out"), "someone/new", token=token)
    assert not isinstance(raised.value, NotReachableError) and "hf_" not in str(raised.value)
    assert sum("create" in request for request in hub_here.requests) == 1


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_result_stays_a_folder(hub_here, tmp_path, monkeypatch, offline):
    if offline:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    folder = adapter(tmp_path / "out")
    before = contents(folder)
    result = publish(folder, "someone/new", retries=1, wait=0.01)
    reason = "`HF_HUB_OFFLINE` is set" if offline else "could not be reached"
    assert not result.uploaded and reason in result.message and f"hf upload someone/new {folder}" in result.message
    assert contents(folder) == before and hub_here.requests == []


# In the background


@pytest.fixture
def publisher(hub_here, tmp_path):
    publisher = PeriodicPublisher("someone/new", tmp_path / "out", wait=0.01, retries=1)
    yield publisher
    publisher.close(0)


def test_a_model_is_uploaded_while_the_training_goes_on(hub_here, publisher, tmp_path):
    folder = adapter(tmp_path / "model", b"step 1")
    expected = contents(folder)
    hub_here.faults.append(Fault("repos/create", 500))  # so that the upload takes a while
    publisher.push(folder, "step 1")
    (folder / "adapter_model.safetensors").write_bytes(b"step 2")
    assert publisher.close(20) and publisher.last_error is None
    assert hub_here.repositories["someone/new"] == expected
    assert os.listdir(tmp_path) == ["model"]  # the copy is deleted


def test_the_latest_model_wins(hub_here, publisher, tmp_path):
    started = threading.Event()
    hub_here.faults.append(Fault("repos/create", "hang"))
    hub_here.ended = started  # the server's first answer waits for this event
    for step in range(1, 6):
        with publisher.new(f"step {step}") as folder:
            adapter(folder, b"%d" % step)
        while not hub_here.requests:  # the first upload has begun
            started.wait(0.01)
    started.set()
    hub_here.faults.clear()
    assert publisher.flush(20)
    # The first upload was cut off and tried again; of those that waited, only the last was uploaded.
    assert [commit[0] for commit in hub_here.commits["someone/new"]] == ["step 1", "step 5"]
    assert hub_here.repositories["someone/new"]["adapter_model.safetensors"] == b"5"
    assert os.listdir(tmp_path) == []


def test_errors_are_logged_and_not_raised(hub_here, publisher, tmp_path, caplog):
    hub_here.faults.append(Fault("/commit/", 500, times=2))
    folder = adapter(tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        publisher.push(folder, "step 1")
        assert publisher.flush(20)
    assert isinstance(publisher.last_error, NotReachableError) and "'step 1' was not uploaded" in caplog.text
    publisher.push(folder, "step 2")
    assert publisher.flush(20) and publisher.last_error is None and publisher.last_commit == f"{1:040x}"


def test_a_model_that_cannot_be_saved_is_not_uploaded(hub_here, publisher, tmp_path):
    with pytest.raises(RuntimeError, match="disk"), publisher.new("step 1") as folder:
        adapter(folder)
        raise RuntimeError("disk")
    assert publisher.flush(5) and hub_here.requests == [] and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "request_pattern", ["repos/create", "GET /api/models/", "validate-yaml", "/preupload/", "/commit/"]
)
def test_the_end_does_not_wait_for_a_slow_upload_which_replaces_nothing_later(
    hub_here, publisher, tmp_path, request_pattern
):
    slow = threading.Event()
    hub_here.faults.append(Fault(request_pattern, slow.wait))
    publisher.push(adapter(tmp_path / "model", b"old"), "step 1")
    assert not publisher.close(0.3)
    final = adapter(tmp_path / "final", b"final")
    assert publish(final, "someone/new").uploaded
    slow.set()
    assert publisher.flush(10) and publisher.last_error is not None
    assert hub_here.repositories["someone/new"] == contents(final)
    publisher.push(adapter(tmp_path / "model", b"late"), "step 2")
    assert publisher.flush(10) and hub_here.repositories["someone/new"] == contents(final)
    assert sorted(os.listdir(tmp_path)) == ["final", "model"]


def test_a_folder_that_cannot_be_copied_is_logged(hub_here, tmp_path, caplog):
    folder = adapter(tmp_path / "model")
    (tmp_path / "file").touch()
    publisher = PeriodicPublisher("someone/new", tmp_path / "file" / "out")
    publisher.push(folder, "step 1")
    assert isinstance(publisher.last_error, OSError) and "'step 1' was not uploaded" in caplog.text
    assert publisher.close(5) and hub_here.requests == []


# The real thing


LOAD = """
import sys
from showo_hf import ShowoT2IPipeline
from showo_hf.training.publishing import check_destination, publish
destination = check_destination("someone/pushed")
assert destination.exists is False and destination.warning is None, destination
result = publish(sys.argv[1], destination.repo_id)
assert result.uploaded, result
pipe = ShowoT2IPipeline.from_pretrained("someone/pushed")
print("tokens", pipe("owl", num_inference_steps=2, output_type="latent").images.shape)
"""


@pytest.mark.slow
def test_a_pushed_pipeline_loads_by_its_name(hub, processor, tmp_path):
    tiny.pipeline(processor).save_pretrained(tmp_path / "out")
    hub.faults += [Fault("PUT /objects/", "cut"), Fault("/commit/", "cut")]
    command = [sys.executable, "-c", LOAD, str(tmp_path / "out")]
    done = subprocess.run(
        command, env=environment_of(hub, tmp_path / "home"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "tokens torch.Size([1, 4, 4])" in done.stdout
    assert hub.repositories["someone/pushed"] == contents(tmp_path / "out")
    assert len(hub.commits["someone/pushed"]) == 1 and all(fault.times == 0 for fault in hub.faults)
    assert files_of(tmp_path / "out")[1] == ()
