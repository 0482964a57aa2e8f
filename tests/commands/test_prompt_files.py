"""`showo-hf generate --prompts`: a folder of images that resumes, in one process and in several."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image

from showo_hf import cli
from showo_hf.commands import image_generation, prompt_files, scheduler_options
from showo_hf.commands.errors import UsageError
from showo_hf.commands.prompt_files import collect_parts, read_prompts, wanted_images
from showo_hf.commands.saved_model import SavedModel
from showo_hf.commands.time_limit import TimeLimit


COMMAND = Path(__file__).parents[2] / "src" / "showo_hf_command.py"
# accelerate starts several processes without a GPU only where `--multi_gpu` says so; `--device cpu` is the command's own.
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
LAUNCHERS = {"accelerate": ACCELERATE, "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")}
PROMPTS = ["an owl", "two hearts", "a red apple"]


@pytest.fixture
def generate(taught_folder):
    """Run the command with a small model."""

    def run(*arguments: str) -> int:
        options = ["--model", taught_folder, "--device", "cpu", "--quiet", "--steps", "3"]
        return cli.main(["generate", *arguments, *options])

    return run


def write_prompts(lines: list[str] = PROMPTS, name: str = "prompts.txt") -> str:
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def index(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def images(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.png"))}


def test_every_prompt_gets_its_images_and_the_index_every_setting(generate, taught_folder, capsys):
    assert generate("--prompts", write_prompts(), "-o", "out", "--seed", "5", "--num", "2") == cli.GOOD
    assert capsys.readouterr().out == "out\n"
    assert sorted(images("out")) == [f"{number:06}.png" for number in range(6)]
    assert sorted(path.name for path in Path("out").iterdir() if path.suffix != ".png") == [
        "metadata.jsonl", "settings.json",
    ]  # fmt: skip
    records = index("out")
    assert [record["text"] for record in records] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert [record["seed"] for record in records] == list(range(5, 11))
    assert records[3] == {
        "file_name": "000003.png", "text": "two hearts", "number": 3, "prompt": "two hearts", "negative_prompt": "",
        "seed": 8, "width": 24, "height": 24, "model": taught_folder, "dtype": "float32", "steps": 3, "guidance": 2.75,
        "temperature": records[3]["scheduler"]["temperature"], "decoder_steps": None,
        "scheduler": records[3]["scheduler"], "device": "cpu", "threads": torch.get_num_threads(),
        "showo_hf": version("showo-hf"),
    } | {"width": records[3]["width"], "height": records[3]["height"]}  # fmt: skip
    with Image.open("out/000003.png") as image:
        assert image.size == (records[3]["width"], records[3]["height"])
    assert records[3]["scheduler"]["class"] == "MaskGITScheduler" and "mask_token_id" in records[3]["scheduler"]


def test_an_image_of_a_file_is_the_image_of_its_prompt_and_seed(generate):
    assert generate("--prompts", write_prompts(["two hearts"]), "-o", "out", "--seed", "8") == cli.GOOD
    assert generate("two hearts", "--seed", "8", "-o", "one.png") == cli.GOOD
    assert images("out")["000000.png"] == Path("one.png").read_bytes()


def test_a_stopped_run_resumes_with_the_same_images(generate, monkeypatch, capsys):
    monkeypatch.setattr(prompt_files, "BATCH_SIZE", 2)
    prompts = write_prompts([*PROMPTS, "an owl", "a heart"])
    assert generate("--prompts", prompts, "-o", "whole", "--seed", "5") == cli.GOOD
    written, append = [], prompt_files.append_text

    def stop_after_two(path, text):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        append(path, text)

    monkeypatch.setattr(prompt_files, "append_text", stop_after_two)
    assert generate("--prompts", prompts, "-o", "parts", "--seed", "5") == cli.INTERRUPTED
    monkeypatch.setattr(prompt_files, "append_text", append)
    assert [path.name for path in Path("parts").glob("part-*")] == ["part-0.jsonl"]
    capsys.readouterr()
    assert generate("--prompts", prompts, "-o", "parts") == cli.GOOD  # with the seed of the first run
    assert images("parts") == images("whole") and index("parts") == index("whole")
    Path("parts/000002.png").unlink()
    kept = Path("parts/000003.png").stat().st_mtime_ns
    assert generate("--prompts", prompts, "-o", "parts") == cli.GOOD
    assert images("parts") == images("whole") and index("parts") == index("whole")
    assert Path("parts/000003.png").stat().st_mtime_ns == kept
    # When all images are there, no model is loaded. More lines give more images.
    monkeypatch.setattr(prompt_files, "ready_pipeline", None)
    assert generate("--prompts", prompts, "-o", "parts") == cli.GOOD


def test_work_of_hours_that_is_refused_leaves_nothing(generate, monkeypatch, capsys):
    """The same prompts may then be asked for with other settings. The seed is told when there are images."""
    prompts = write_prompts()
    with monkeypatch.context() as slow:
        slow.setattr(TimeLimit.__init__, "__defaults__", (0.0, *TimeLimit.__init__.__defaults__[1:]))
        assert generate("--prompts", prompts, "-o", "out") == cli.USAGE
        Path("mine").mkdir()
        assert generate("--prompts", prompts, "-o", "mine") == cli.USAGE
        printed = capsys.readouterr().err
        assert printed.count("add --yes to do it") == 2 and "seed" not in printed
        assert not Path("out").exists() and Path("mine").is_dir() and not list(Path("mine").iterdir())
        assert generate("--prompts", prompts, "-o", "mine", "--yes") == cli.GOOD
    assert generate("--prompts", prompts, "-o", "out", "--temperature", "0.5") == cli.GOOD
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["seed", "seed"]


def test_the_time_is_estimated_from_the_batches_that_run(generate, monkeypatch):
    """One missing image of a batch takes as long as all of them."""
    monkeypatch.setattr(prompt_files, "BATCH_SIZE", 2)
    prompts = write_prompts([f"owl {number}" for number in range(4)])
    assert generate("--prompts", prompts, "-o", "out", "--seed", "1") == cli.GOOD
    for number in (0, 2):
        Path(f"out/{number:06}.png").unlink()
    calls = []
    monkeypatch.setattr(
        prompt_files, "TimeLimit", lambda agreed, count: calls.append(count) or TimeLimit(agreed, count)
    )
    assert generate("--prompts", prompts, "-o", "out") == cli.GOOD
    assert calls == [2]


def test_a_run_that_was_stopped_before_its_first_image_may_change(generate, monkeypatch):
    prompts = write_prompts()
    with monkeypatch.context() as stopped:
        stopped.setattr(prompt_files, "images_of", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert generate("--prompts", prompts, "-o", "out", "--seed", "5") == cli.INTERRUPTED
    assert [path.name for path in Path("out").iterdir()] == ["settings.json"]
    assert generate("--prompts", prompts, "-o", "out", "--seed", "6", "--temperature", "0.5") == cli.GOOD
    assert json.loads(Path("out/settings.json").read_text(encoding="utf-8"))["seed"] == 6
    assert generate("--prompts", prompts, "-o", "out", "--seed", "7", "--temperature", "0.5") == cli.USAGE


def test_only_the_records_of_this_command_are_collected():
    Path("out").mkdir()
    files = {
        "part-0.jsonl": '{"number": 1}\n',
        "part-mine.jsonl": '{"number": 2}\n',
        "part-1.jsonl": '{"number": 0}\n',
    }
    for name, text in files.items():
        Path("out", name).write_text(text)
    assert collect_parts(Path("out")) == {0: {"number": 0}, 1: {"number": 1}}
    assert [record["number"] for record in index("out")] == [0, 1]
    assert sorted(path.name for path in Path("out").iterdir()) == ["metadata.jsonl", "part-mine.jsonl"]
    Path("out/part-2.jsonl").write_text('{"number": 4}\n{"text": "milk"}\n')
    with pytest.raises(UsageError, match="line 2 of 'out/part-2.jsonl' has no number"):
        collect_parts(Path("out"))
    assert Path("out/part-2.jsonl").is_file() and len(index("out")) == 2


@pytest.fixture
def threads():
    """Sets the number of threads of this process, and sets it back in the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_resumed_run_computes_with_the_threads_of_the_first(generate, threads):
    prompts = write_prompts()
    threads(3)
    assert generate("--prompts", prompts, "-o", "out", "--seed", "5") == cli.GOOD
    settings = json.loads(Path("out/settings.json").read_text(encoding="utf-8"))
    assert (settings["threads"], settings["device"]) == (3, "cpu")
    whole = index("out")
    assert [record["threads"] for record in whole] == [3, 3, 3]
    Path("out/000001.png").unlink()
    threads(1)
    assert generate("--prompts", prompts, "-o", "out") == cli.GOOD
    assert torch.get_num_threads() == 3 and index("out") == whole


def change_settings(folder: str, **changes) -> None:
    """Change fields of the settings of a folder. None removes a field."""
    file = Path(folder, "settings.json")
    settings = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def test_a_folder_is_continued_on_its_kind_of_device(generate, threads, capsys):
    prompts = write_prompts()
    assert generate("--prompts", prompts, "-o", "out", "--seed", "5") == cli.GOOD
    before, whole = images("out"), index("out")
    change_settings("out", device="cuda")
    capsys.readouterr()
    assert generate("--prompts", prompts, "-o", "out") == cli.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds images made on the device 'cuda', and 'cpu' would round differently; use `--device cuda`" in line
    # A folder of an earlier version, whose settings name neither, is continued as it was.
    change_settings("out", device=None, threads=None)
    Path("out/000001.png").unlink()
    assert generate("--prompts", prompts, "-o", "out") == cli.GOOD
    assert images("out") == before and index("out") == whole


@pytest.mark.parametrize("change", [{"threads": 0}, {"threads": "many"}, {"threads": 10**9}, {"seed": None}])
def test_settings_that_the_command_did_not_write_are_refused(change, generate, capsys):
    prompts = write_prompts(["an owl"])
    assert generate("--prompts", prompts, "-o", "out", "--seed", "5") == cli.GOOD
    change_settings("out", **change)
    assert generate("--prompts", prompts, "-o", "out") == cli.USAGE
    assert "has a settings.json that this command did not write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--seed", "6"], "holds images with seed '5', and '6'"),
        (["--seed", "5", "--guidance", "4"], "guidance 'None', and '4.0'"),
        (["--seed", "5", "--num", "2"], "num '1', and '2'"),
    ],
)
def test_a_folder_holds_images_of_one_kind(more, named, generate, capsys):
    prompts = write_prompts(["an owl"])
    assert generate("--prompts", prompts, "-o", "out", "--seed", "5") == cli.GOOD
    before = images("out")
    assert generate("--prompts", prompts, "-o", "out", *more) == cli.USAGE
    assert named in capsys.readouterr().err
    assert images("out") == before


def test_lines_of_json_have_their_own_seeds_and_negative_prompts(generate):
    lines = [{"prompt": "an owl", "seed": 3}, {"prompt": "an owl", "seed": 3, "negative_prompt": "a heart"}]
    write_prompts([json.dumps(line) for line in lines], "prompts.jsonl")
    assert generate("--prompts", "prompts.jsonl", "-o", "out", "--seed", "9", "--num", "2") == cli.GOOD
    records = index("out")
    assert [record["seed"] for record in records] == [3, 4, 3, 4]
    assert [record["negative_prompt"] for record in records] == ["", "", "a heart", "a heart"]
    made = images("out")
    assert made["000000.png"] != made["000002.png"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"an owl\ncaf\xe9\n", "is not UTF-8"),
        (b"an owl\na\0b\n", "line 2` must be text, but has a NUL"),
        (b'{"prompt": "an owl"}\nan owl\n', "line 2` must be a JSON object, got 'an owl'"),
        (b'{"prompt": 3}\n', "line 1` must be a JSON object with a text `prompt`"),
        (b'{"prompt": ""}\n', "line 1` must contain words"),
        (b'{"prompt": "a\\ud800"}\n', "line 1` must be text in UTF-8"),
        (b'{"prompt": "a", "sed": 3}\n', "got 'sed'"),
        (b'{"prompt": "a", "seed": -3}\n', "`seed` must be an integer from 0"),
        (b'{"prompt": "a", "seed": true}\n', "`seed` must be an integer"),
        (b'{"prompt": "a", "negative_prompt": 3}\n', "a text as `negative_prompt`"),
        (b"[" * 100_000, "line 1` must be a JSON object, got '[[["),
    ],
)
def test_a_file_that_is_not_allowed_is_refused_before_any_work(content, named, refused):
    name = "prompts.txt" if content[:1] not in (b"{", b"[") else "prompts.jsonl"
    Path(name).write_bytes(content)
    refused(["generate", "--prompts", name, "-o", "out"], named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompts", "gone.txt", "-o", "out"], "No such file"),
        (["--prompts", "prompts.csv", "-o", "out"], ".txt or .jsonl"),
        (["--prompts", "prompts.txt", "-o", "prompts.txt"], "'prompts.txt' is a file"),
        (["--prompts", "prompts.txt", "-o", "prompts.txt/out"], "'prompts.txt' is a file"),
        (["--prompts", "prompts.txt", "-o", "mine", "--seed", "3"], "'mine' has other files"),
        (["--prompts", "prompts.txt", "-o", "out", "--size", "97"], "--size"),
        (["--prompts", "prompts.txt", "-o", "out", "--size", "2048"], "`--size` must be at most"),
        (["--prompts", "prompts.txt", "-o", "out", "--save-steps", "a.gif"], "--save-steps"),
    ],
)
def test_arguments_that_are_not_allowed(arguments, named, refused):
    write_prompts()
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    refused(["generate", *arguments], named)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--size", "2048"], "`--size` must take at most 4,096 image tokens"),
        (["--scheduler", "mask-and-replace", "--steps", "101"], "`--steps` must be at most the `num_train_timesteps`"),
    ],
)
def test_nothing_is_written_for_what_only_the_pipeline_refuses(wrong, named, taught_folder, monkeypatch, capsys):
    """A model on the Hub has no files that tell its sizes before it is loaded."""
    for module in (image_generation, scheduler_options):
        monkeypatch.setattr(module, "read_saved_model", lambda model: SavedModel())
    command = ["generate", "--prompts", write_prompts(["an owl"]), "-o", "out", "--model", taught_folder]
    assert cli.main([*command, "--device", "cpu", *wrong]) == cli.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not Path("out").exists()
    assert cli.main([*command, "--device", "cpu", "--steps", "3"]) == cli.GOOD


def test_the_home_folder_is_expanded(generate, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    write_prompts(["an owl"], "home/prompts.txt")
    assert generate("--prompts", "~/prompts.txt", "-o", "~/out", "--seed", "5") == cli.GOOD
    assert list(images("home/out")) == ["000000.png"]
    assert generate("an owl", "-o", "~/owl.png", "--seed", "5") == cli.GOOD
    assert Path("home/owl.png").is_file() and not Path("~").exists()


def test_numbers_and_seeds_of_wanted_images():
    wanted = list(wanted_images([{"prompt": "a"}, {"prompt": "b", "seed": 7}, {"prompt": "c"}], 2, 100, None))
    assert [(one.number, one.prompt, one.seed) for one in wanted] == [
        (0, "a", 100), (1, "a", 101), (2, "b", 7), (3, "b", 8), (4, "c", 104), (5, "c", 105),
    ]  # fmt: skip


def test_prompts_of_a_file_with_a_byte_order_mark(tmp_path):
    Path("a.txt").write_bytes("\ufeffan owl\r\n\r\n ein Kürbis \n".encode())
    assert [record["prompt"] for record in read_prompts(Path("a.txt"))] == ["an owl", "ein Kürbis"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_make_the_images_of_one(launcher, generate, taught_folder):
    prompts = write_prompts([f"{prompt} {number}" for number in range(7) for prompt in PROMPTS])  # three batches
    assert generate("--prompts", prompts, "-o", "one", "--seed", "5") == cli.GOOD
    options = ["--model", taught_folder, "--device", "cpu", "--steps", "3", "--seed", "5"]
    launch = [sys.executable, "-m", *LAUNCHERS[launcher], COMMAND]
    command = [*launch, "generate", "--prompts", prompts, "-o", "two", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["two"]
    assert len(images("two")) == 21 and images("two") == images("one") and index("two") == index("one")
    # Two processes go on where one stopped.
    for number in (0, 9, 20):
        Path(f"two/{number:06}.png").unlink()
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "18 skipped, 3 done" in done.stderr, done.stderr
    assert images("two") == images("one") and index("two") == index("one")


@pytest.mark.slow
def test_processes_with_one_thread_continue_a_run_with_two(generate, threads, taught_folder):
    """Launchers give each process one thread. Without the stored number, the index would name that one."""
    prompts = write_prompts([f"{prompt} {number}" for number in range(7) for prompt in PROMPTS])  # three batches
    threads(2)
    assert generate("--prompts", prompts, "-o", "out", "--seed", "5") == cli.GOOD
    before, whole = images("out"), index("out")
    assert {record["threads"] for record in whole} == {2}
    for number in (0, 9, 20):
        Path(f"out/{number:06}.png").unlink()
    options = ["--model", taught_folder, "--device", "cpu", "--steps", "3", "--seed", "5"]
    command = [sys.executable, "-m", *LAUNCHERS["torchrun"], COMMAND, "generate", "--prompts", prompts, "-o", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0 and "18 skipped, 3 done" in done.stderr, done.stderr
    assert images("out") == before and index("out") == whole


@pytest.mark.slow
def test_two_processes_caption_a_folder_as_one(taught_folder, capsys):
    Path("images").mkdir()
    for number in range(11):
        image = Image.radial_gradient("L").resize((20 + number, 18)).convert("RGB")
        image.save(f"images/{number:02}.png")
    Path("images/05.png").write_bytes(b"not an image")
    options = ["--model", taught_folder, "--device", "cpu", "--max-new-tokens", "6", "--batch-size", "2"]
    assert cli.main(["caption", "images", "-o", "one.jsonl", *options]) == cli.FAILED
    launch = [sys.executable, "-m", *ACCELERATE, COMMAND]
    command = [*launch, "caption", "images", "-o", "two.jsonl", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "0 skipped, 10 done, 1 failed" in done.stderr, done.stderr
    assert Path("two.jsonl").read_text() == Path("one.jsonl").read_text()
    assert not list(Path().glob("*-part-*"))
    shutil.copy("images/04.png", "images/05.png")
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "10 skipped, 1 done, 0 failed" in done.stderr, done.stderr
    assert len(Path("two.jsonl").read_text().splitlines()) == 11
