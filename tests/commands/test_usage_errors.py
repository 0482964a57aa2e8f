"""
Usage errors of every command: at most three lines that name the option, exit code 2, and torch is never imported.

A process without torch reads the command lines, and runs each in a fork of itself.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import TrainingArguments

from showo_hf.commands.recipe_keys import recipe_keys
from showo_hf.training.kinds import KINDS, config_keys


COMMAND = Path(__file__).parents[2] / "src" / "showo_hf_command.py"
SLOWEST = 0.3  # seconds of CPU time

RUN_EACH_IN_A_FORK = """
import io, json, os, sys, time
sys.path.insert(0, sys.argv[1])
import showo_hf_command
showo_hf_command.prepare()
from showo_hf.cli import main
found = []
for words in json.loads(sys.stdin.read()):
    readable, writable = os.pipe()
    if os.fork() == 0:
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        start = time.process_time()
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        report = [code, "torch" in sys.modules, time.process_time() - start, sys.stdout.getvalue(), sys.stderr.getvalue()]
        os.write(writable, json.dumps(report).encode())
        os._exit(0)
    os.close(writable)
    with open(readable, "rb") as file:
        found.append(json.loads(file.read()))
    os.wait()
print(json.dumps(found))
"""

MAKE = "-o a.png"
#: Command lines, and what the message names. IMAGE files: apple.png (96x96), broken.png. `full` holds a strange file.
CASES = {
    "": "COMMAND",
    "paint": "paint",
    "--nope": "COMMAND",
    "--print-completion klingon": "--print-completion",
    "generate": "--output",
    f"generate {MAKE}": "a prompt is needed",
    f"generate EMPTY {MAKE}": "prompt",
    f"generate aNULb {MAKE}": "prompt",
    f"generate BYTES {MAKE}": "prompt",
    "generate owl -o a.bmp": "--output",
    "generate owl -o full": "--output",
    "generate owl -o gone/a.png": "--output",
    f"generate owl {MAKE} --nonsense": "--nonsense",
    f"generate owl {MAKE} --size 97": "--size",
    f"generate owl {MAKE} --size 100000": "--size",
    f"generate owl {MAKE} --size 16384": "--size",
    f"generate owl {MAKE} --size big": "--size",
    f"generate owl {MAKE} --steps 0": "--steps",
    f"generate owl {MAKE} --steps 99999999999999999999": "--steps",
    f"generate owl {MAKE} --guidance nan": "--guidance",
    f"generate owl {MAKE} --temperature -1": "--temperature",
    f"generate owl {MAKE} --seed 9223372036854775808": "--seed",
    f"generate owl {MAKE} --seed 9223372036854775807 --num 2": "--seed",
    f"generate owl {MAKE} --num 1000000": "--num",
    f"generate owl {MAKE} --negative-prompt aNULb": "--negative-prompt",
    f"generate owl {MAKE} --scheduler magic": "--scheduler",
    f"generate owl {MAKE} --scheduler-option heat=3": "--scheduler-option",
    f"generate owl {MAKE} --scheduler-option temperature=hot": "--scheduler-option",
    f"generate owl {MAKE} --scheduler-option temperature=-3": "--scheduler-option",
    f"generate owl {MAKE} --scheduler halton --scheduler-option top_p=3": "--scheduler-option",
    f"generate owl {MAKE} --scheduler maskgit --scheduler-option temperature_rule=linaer": "--scheduler-option",
    f"generate owl {MAKE} --scheduler maskgit --scheduler-option top_k": "--scheduler-option",
    f"generate owl {MAKE} --device abacus": "--device",
    f"generate owl {MAKE} --device cpu --dtype float16": "--dtype",
    f"generate owl {MAKE} --dtype int8": "--dtype",
    f"generate owl {MAKE} --model nope": "--model",
    f"generate owl {MAKE} --model full": "--model",
    f"generate owl {MAKE} --model apple.png": "--model",
    f"generate owl {MAKE} --save-steps a.png": "--save-steps",
    f"generate owl {MAKE} --save-steps a.mp4": "--save-steps",
    "generate owl --prompts p.txt -o images": "--prompts",
    "generate --prompts gone.txt -o images": "--prompts",
    "generate --prompts broken.png -o images": "--prompts",
    "generate --prompts p.txt -o full": "--output",
    "generate --prompts p.txt -o p.txt": "--output",
    "generate --prompts p.txt -o images --size 97": "--size",
    "generate --prompts p.txt -o images --save-steps a.gif": "--save-steps",
    f"inpaint apple.png owl {MAKE}": "--mask",
    f"inpaint gone.png owl {MAKE} --box 0,0,20,20": "IMAGE",
    f"inpaint broken.png owl {MAKE} --box 0,0,20,20": "IMAGE",
    f"inpaint apple.png owl {MAKE} --box 1,2,3": "--box",
    f"inpaint apple.png owl {MAKE} --box 0,0,97,20": "--box",
    f"inpaint apple.png owl {MAKE} --mask gone.png": "--mask",
    f"inpaint apple.png owl {MAKE} --mask broken.png": "--mask",
    f"inpaint apple.png owl {MAKE} --box 0,0,20,20 --strength 2": "--strength",
    f"inpaint apple.png owl {MAKE} --box 0,0,20,20 --remasking best": "--remasking",
    f"inpaint apple.png owl {MAKE} --box 0,0,20,20 --crop 8 --num 2": "--num",
    f"inpaint apple.png owl {MAKE} --box 0,0,20,20 --crop 8 --save-steps a.gif": "--save-steps",
    f"extend broken.png owl {MAKE}": "IMAGE",
    f"extend apple.png EMPTY {MAKE}": "prompt",
    f"extend apple.png owl {MAKE} --direction north": "--direction",
    f"extend apple.png owl {MAKE} --extent 97": "--extent",
    f"extend apple.png owl {MAKE} --extent 96": "--extent",
    f"extend apple.png owl {MAKE} --rounds 1000": "--rounds",
    "vary apple.png": "--output",
    f"vary gone.png owl {MAKE}": "IMAGE",
    f"vary broken.png owl {MAKE}": "IMAGE",
    f"vary full owl {MAKE}": "IMAGE",
    f"vary apple.png owl {MAKE} --strength -1": "--strength",
    "caption": "IMAGE",
    "caption gone.png": "gone.png",
    "caption full": "full",
    "caption apple.png --prompt EMPTY": "--prompt",
    "caption apple.png --batch-size 0": "--batch-size",
    "caption apple.png --max-new-tokens 0": "--max-new-tokens",
    "caption apple.png -o out.txt": "--output",
    "caption apple.png -o strange.jsonl": "--output",
    "caption apple.png --model nope": "--model",
    "caption apple.png --device abacus": "--device",
    "caption apple.png --device cpu --dtype float16": "--dtype",
    "ask apple.png": "question",
    "ask apple.png EMPTY": "QUESTION",
    "ask gone.png what?": "gone.png",
    "ask apple.png apple.png": "question",
    "ask apple.png what? --choices yes": "--choices",
    "ask apple.png what? --choices yes yes": "--choices",
    "ask apple.png what? -o out.txt": "--output",
    "ask apple.png what? --model full": "--model",
    "chat -o gone": "--output",
    "chat --load gone.json": "--load",
    "chat --load p.txt": "--load",
    "chat --load list.json": "--load",
    "chat --steps 0": "--steps",
    "chat --max-images -1": "--max-images",
    "chat --scheduler magic": "--scheduler",
    "chat --model nope": "--model",
    "chat --device cpu --dtype float16": "--dtype",
    "train": "give a recipe",
    "train lorra": "did you mean 'lora'",
    "train gone.yaml": "gone.yaml",
    "train lora mine": "key=value",
    "train lora dat=mine": "did you mean 'data'",
    "train lora data=[": "`data`",
    "train lora data=mine data=yours": "given twice",
    "tokenize": "--output",
    "tokenize gone -o out": "DATA",
    "tokenize full -o p.txt": "--output",
    "tokenize full -o out --dtype bfloat16": "--dtype",
    "tokenize full -o out --model nope": "--model",
    "tokenize full -o out --size 0": "--size",
    "convert": "--image-tokenizer",
    "convert --image-tokenizer full --text-tokenizer full -o out": "--showo",
    "convert --showo full --image-tokenizer full -o out": "--text-tokenizer",
    "convert --image-tokenizer gone -o out": "--image-tokenizer",
    "convert --image-tokenizer full -o p.txt": "--output",
    "convert --image-tokenizer full -o out --max-shard-size 3": "--max-shard-size",
    "export": "--output",
    "export gone -o out": "FOLDER",
    "export full -o p.txt": "--output",
    "export full -o out --format pickle": "--format",
    "space": "FOLDER",
    "space full": "FOLDER",
    "space out --model nope": "--model",
    "space out --push nope": "--push",
    "space out --wheel gone.whl": "--wheel",
    "info --nope": "--nope",
}
# Not among them, because only torch and the libraries on top of it know: devices that are absent, some values that a
# scheduler rejects, the aspect of a mask, values of a recipe, and what a data set holds.


@pytest.fixture
def files(empty_folder) -> Path:
    Image.new("RGB", (96, 96), "white").save("apple.png")
    Path("broken.png").write_bytes(b"\xff no image")
    Path("p.txt").write_text("an owl\n")
    Path("list.json").write_text("{}")
    Path("strange.jsonl").write_text('{"a": 1}\n')
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("mine")
    return empty_folder


def words_of(line: str) -> list[str]:
    """Split a command line. The words in capitals stand for what cannot be written there."""
    strange = {"EMPTY": "", "aNULb": "a\0b", "BYTES": "\udcff"}
    return [strange.get(word, word) for word in line.split()]


def test_usage_errors_come_before_torch(files):
    before = {path: path.stat().st_mtime_ns for path in files.rglob("*")}
    command = [sys.executable, "-c", RUN_EACH_IN_A_FORK, COMMAND.parent]
    given = json.dumps([words_of(line) for line in CASES])
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    wrong = []
    for (line, named), (code, torch, seconds, printed, told) in zip(
        CASES.items(), json.loads(done.stdout), strict=True
    ):
        short = len(told.splitlines()) <= 3 and len(told) < 700 and "Traceback" not in told
        if code != 2 or torch or seconds > SLOWEST or printed or not short or named not in told:
            wrong.append((line, named, code, torch, seconds, printed, told))
    assert not wrong, "\n".join(map(str, wrong))
    assert {path: path.stat().st_mtime_ns for path in files.rglob("*")} == before


def test_every_command_is_asked_for_something_wrong():
    from showo_hf.cli import COMMANDS

    names = {module.__name__.rpartition(".")[2] for module in COMMANDS}
    assert names <= {line.partition(" ")[0] for line in CASES}


def test_the_keys_of_recipes_are_those_of_their_classes():
    theirs = {one.name for one in dataclasses.fields(TrainingArguments) if one.init}
    own = {name for kind in KINDS for name in config_keys(kind)}
    assert theirs | own <= recipe_keys() <= theirs | own | {"recipe", "training"} | nested_names()


def nested_names() -> set[str]:
    """Fields of the other classes in the files of the configs, such as those of a loss."""
    from showo_hf.training import configs, decoder_config, image_configs

    classes = [one for module in (configs, decoder_config, image_configs) for one in vars(module).values()]
    return {name for one in classes if isinstance(one, type) for name in getattr(one, "__annotations__", {})} | {
        one.name for one in dataclasses.fields(TrainingArguments)
    }
