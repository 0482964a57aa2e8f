"""
Usage errors of every command: at most three lines that name the option, exit code 2, and torch is never imported.

A process without torch reads the command lines, and runs each in a fork of itself.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from showo_hf.commands.devices import only_cpu


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
ABSENT = "xpu" if sys.platform == "darwin" else "mps"
WHOLE = "--showo full --image-tokenizer full --text-tokenizer full"
#: Command lines, and what the message names. apple.png has 96x96 pixels, wide.png 96x48, broken.png is no image.
#: `full` holds a strange file.
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
    "generate owl -o d.png --num 2": "'d-1.png' is a folder",
    "generate owl -o LENGTH255.png --num 2": "File name too long",
    "generate owl -o LENGTH256.png": "File name too long",
    f"generate owl {MAKE} --num 2 --save-steps d.png": "`--save-steps` must be a file, but 'd-1.png' is a folder",
    f"generate owl {MAKE} --nonsense": "--nonsense",
    f"generate owl {MAKE} --size 97": "--size",
    f"generate owl {MAKE} --size 100000": "--size",
    f"generate owl {MAKE} --size 16384": "--size",
    f"generate owl {MAKE} --size 2048": "--size",
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
    f"generate owl {MAKE} --scheduler-option masking_schedule=steep": "--scheduler-option",
    f"generate owl {MAKE} --scheduler halton --scheduler-option masking_schedule=pow-1": "--scheduler-option",
    f"generate owl {MAKE} --scheduler mask-and-replace --temperature 3": "`--temperature` is not an option of",
    f"generate owl {MAKE} --scheduler mask-and-replace --steps 101": "`--steps` must be at most",
    f"vary apple.png owl {MAKE} --scheduler mask-and-replace --scheduler-option num_train_timesteps=5": "`--steps`",
    f"generate owl {MAKE} --device abacus": "--device",
    f"generate owl {MAKE} --device cpu --dtype float16": "--dtype",
    f"generate owl {MAKE} --device {ABSENT}": "--device",
    f"generate owl {MAKE} --dtype int8": "--dtype",
    f"generate owl {MAKE} --model nope": "--model",
    f"generate owl {MAKE} --model full": "--model",
    f"generate owl {MAKE} --model adapter": "'adapter' is an adapter; train it with merge=true",
    f"generate owl {MAKE} --model apple.png": "--model",
    f"generate owl {MAKE} --save-steps a.png": "--save-steps",
    f"generate owl {MAKE} --save-steps a.mp4": "--save-steps",
    "generate owl --prompts p.txt -o images": "--prompts",
    "generate --prompts gone.txt -o images": "--prompts",
    "generate --prompts broken.png -o images": "--prompts",
    "generate --prompts p.txt -o full": "--output",
    "generate --prompts p.txt -o p.txt": "--output",
    "generate --prompts p.txt -o images --size 97": "--size",
    "generate --prompts p.txt -o images --size 2048": "--size",
    "generate --prompts p.txt -o images --save-steps a.gif": "--save-steps",
    f"inpaint apple.png owl {MAKE}": "--mask",
    f"inpaint gone.png owl {MAKE} --box 0,0,20,20": "IMAGE",
    f"inpaint broken.png owl {MAKE} --box 0,0,20,20": "IMAGE",
    f"inpaint apple.png owl {MAKE} --box 1,2,3": "--box",
    f"inpaint apple.png owl {MAKE} --box 0,0,97,20": "--box",
    f"inpaint apple.png owl {MAKE} --mask gone.png": "--mask",
    f"inpaint apple.png owl {MAKE} --mask broken.png": "--mask",
    f"inpaint apple.png owl {MAKE} --mask wide.png": "--mask",
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
    f"vary apple.png owl {MAKE} --size 2048": "--size",
    f"vary apple.png owl {MAKE} --max-pixels 9215": "; `--max-pixels` raises the limit",
    f"inpaint apple.png owl {MAKE} --mask apple.png --max-pixels 9215": "; `--max-pixels` raises the limit",
    "caption": "IMAGE",
    "caption gone.png": "gone.png",
    "caption full": "full",
    "caption broken.png": "'broken.png' is not an image in a known format",
    "caption broken.png gone.png": "'broken.png' is not an image in a known format",
    "caption apple.png --prompt EMPTY": "--prompt",
    "caption apple.png --batch-size 0": "--batch-size",
    "caption apple.png --max-new-tokens 0": "--max-new-tokens",
    "caption apple.png -o out.txt": "--output",
    "caption apple.png -o strange.jsonl": "--output",
    "caption apple.png -o LENGTH248.jsonl": "File name too long",  # of the settings beside it
    "caption apple.png -o d.jsonl": "'d.settings.json' is a folder",
    "caption apple.png --model nope": "--model",
    "caption apple.png --max-pixels 999999999": "--max-pixels",
    "caption apple.png --device abacus": "--device",
    "caption apple.png --device cpu --dtype float16": "--dtype",
    "ask apple.png": "question",
    "ask apple.png EMPTY": "QUESTION",
    "ask gone.png what?": "gone.png",
    "ask broken.png what?": "'broken.png' is not an image in a known format",
    "ask apple.png apple.png": "question",
    "ask apple.png what? --choices yes": "--choices",
    "ask apple.png what? --choices yes yes": "--choices",
    "ask apple.png what? -o out.txt": "--output",
    "ask apple.png what? --model full": "--model",
    "chat -o gone": "--output",
    "chat -o LONG": "--output",
    "chat -o aNULb": "--output",
    "chat --load LONG": "--load",
    "chat --load gone.json": "--load",
    "chat --load p.txt": "--load",
    "chat --load list.json": "--load",
    "chat --load ragged.json": "message 1 of 'ragged.json'",
    "chat --load said.json --model nope": "--model",
    "chat --steps 0": "--steps",
    "chat --max-images -1": "--max-images",
    "chat --scheduler magic": "--scheduler",
    "chat --scheduler mask-and-replace --temperature 3": "`--temperature` is not an option of",
    "chat --model nope": "--model",
    "chat --device cpu --dtype float16": "--dtype",
    "train": "give a recipe",
    "train lorra": "did you mean 'lora'",
    "train gone.yaml": "gone.yaml",
    "train lora mine": "key=value",
    "train lora dat=mine": "did you mean 'data'",
    "train lora data=[": "`data`",
    "train lora data=mine data=yours": "given twice",
    "train LONG": "There is no recipe",
    "train lora data=mine output=out steps=abc": "`steps` must be a whole number",
    "train lora data=mine output=out steps=3 resume=3": "`resume` must be true or false",
    "train lora data=mine output=out steps=3 rank=0.5": "`rank` must be a whole number",
    "train lora data=mine output=out": "`steps` is missing",
    "train lora data=mine steps=3": "`output` is missing",
    "train lora data=mine output=out steps=3 output.a=1": "`output.a` sets an entry of `output`",
    "train mine.yaml": "`steps` must be a whole number",
    "train itself.yaml": "its own `base`",
    "train list.yaml": "must be a mapping",
    "train lora data=mine output=out max_steps=3": "`max_steps` is called `steps`",
    "train lora output=out steps=3": "`data` is missing",
    "train lora data=mine output=out steps=-3": "`steps`",
    "train lora data=mine output=out steps=3 learning_rate=fast": "`learning_rate`",
    "train lora data=mine output=out steps=3 learning_rat=1e-4": "did you mean 'learning_rate'",
    "train lora data=mine output=out steps=3 condition_dropout=2": "`condition_dropout`",
    "train lora data=mine output=out steps=3 masking_schedule=sine": "`masking_schedule`",
    "train lora data=mine output=out steps=3 trained=[": "`trained`",
    "train lora data=mine output=out steps=3 trained='('": "`trained`",
    "train lora data=mine output=out steps=3 batch_size.lm=2": "`batch_size`",
    "train concept data=mine output=out steps=3": "`word` is missing",
    "train vq-tokenizer data=mine output=out steps=3 discriminator.norm=batch": "`discriminator.norm`",
    "train diffusion-decoder data=mine output=out steps=3 start=middle": "`start`",
    "train lora data=gone output=out steps=3": "`data.t2i`",
    "train lora data={t2i: full, lm: gone} output=out steps=3": "`data`",
    "train lora data=full validation_data=gone output=out steps=3": "`validation_data.t2i`",
    "train lora data=full output=out steps=3 model=gone": "`model`",
    "train lora data=full output=out steps=3 model=no/such/model": "`model`",
    "train vq-tokenizer data=full output=out steps=3 perceptual=gone": "`perceptual`",
    "train lora data=full output=p.txt steps=3": "`output` must be a folder, but 'p.txt' is a file",
    "train lora data=full output=p.txt/out steps=3": "`output` must be a folder, but 'p.txt' is a file",
    "train lora data=full output=used steps=3": "`output` must be a folder, but 'used-checkpoints' is a file",
    "train lora data=full output=full steps=3": "`output`",
    "train lora data=full output=LENGTH230.x steps=3": "`output` cannot be written",
    "train lora data=full output=out steps=3 push_to_hub=a--b": "`push_to_hub` must be ORG/NAME or NAME, got 'a--b'",
    "train LONG=3 data=mine": "There is no recipe",
    "train lora LONG=3 data=mine output=out steps=3": "There is no key",
    "train lora data=mine output=out steps=LONG": "`steps`",
    "tokenize": "--output",
    "tokenize gone -o out": "DATA",
    "tokenize LONG -o out": "DATA",
    "tokenize full -o p.txt": "--output",
    "tokenize full -o out --dtype bfloat16": "--dtype",
    "tokenize full -o out --model nope": "--model",
    "tokenize full -o out --size 0": "--size",
    "tokenize full -o out --size 63": "--size",
    "tokenize full -o out --size 2048": "--size",
    "tokenize full -o out --size 999999999": "--size",
    "tokenize full -o out --max-broken -1": "--max-broken",
    "tokenize full -o out --max-pixels 0": "--max-pixels",
    "convert": "--image-tokenizer",
    "convert --image-tokenizer full --text-tokenizer full -o out": "--showo",
    "convert --showo full --image-tokenizer full -o out": "--text-tokenizer",
    "convert --image-tokenizer gone -o out": "--image-tokenizer",
    "convert --image-tokenizer apple.png -o out": "`--image-tokenizer` must be a folder, or a file that ends in",
    "convert --showo apple.png --image-tokenizer full --text-tokenizer full -o out": "`--showo` must be a folder",
    "convert --image-tokenizer full -o p.txt": "--output",
    "convert --image-tokenizer full -o full": "`--output` must be a new folder, but 'full' exists already",
    "convert --image-tokenizer full -o .": "`--output` must be a new folder, but '.' exists already",
    "convert --image-tokenizer full -o LENGTH230.x": "File name too long",
    "convert --image-tokenizer full -o out --push-to-hub a--b": "`--push-to-hub` must be ORG/NAME or NAME, got 'a--b'",
    "convert --image-tokenizer full -o out --max-shard-size 3": "--max-shard-size",
    "convert --image-tokenizer full -o out --image-size 999999999": "--image-size",
    f"convert {WHOLE} -o out --num-image-tokens 100000000": "--num-image-tokens",
    f"convert {WHOLE} -o out --num-image-tokens 255": "--num-image-tokens",
    "export": "--output",
    "export gone -o out": "FOLDER",
    "export LONG -o out": "FOLDER",
    "export model -o p.txt": "--output",
    "export model -o full": "`--output` must be a new folder, but 'full' exists already",
    "export full -o out": "`FOLDER` must be a pipeline folder, or the model/ in it",
    "export p.txt -o out": "`FOLDER` must be a pipeline folder",
    "export model -o out --push-to-hub /": "`--push-to-hub` must be ORG/NAME or NAME, got '/'",
    "export full -o out --format pickle": "--format",
    "export model -o out --format bin --max-shard-size 2GB": "`--max-shard-size` needs `--format safetensors`",
    "space": "FOLDER",
    "space full": "FOLDER",
    "space p.txt": "FOLDER",
    "space LONG": "FOLDER",
    "space aNULb": "FOLDER",
    "space p.txt/out": "FOLDER",
    "space out --model nope": "--model",
    "space out --push nope": "--push",
    "space out --wheel gone.whl": "--wheel",
    "space out --wheel LONG": "--wheel",
    "space out --wheel aNULb": "--wheel",
    "info --nope": "--nope",
}
if only_cpu():
    CASES |= dict.fromkeys((f"generate owl {MAKE} --dtype float16", "caption apple.png --dtype float16"), "--dtype")
# Not among them, because only torch and the libraries on top of it know: devices that are absent, some values that a
# scheduler rejects, prompts that are longer than a model reads, the range of a value in a recipe, and what a data set holds.


@pytest.fixture
def files(empty_folder) -> Path:
    Image.new("RGB", (96, 96), "white").save("apple.png")
    Image.new("L", (96, 48), "white").save("wide.png")
    Path("broken.png").write_bytes(b"\xff no image")
    Path("mine.yaml").write_text("base: lora\noutput: out\nsteps: many\ndata: full\n")
    Path("itself.yaml").write_text("base: itself.yaml\n")
    Path("list.yaml").write_text("- 1\n")
    Path("p.txt").write_text("an owl\n")
    Path("used-checkpoints").touch()
    Path("model").mkdir()
    Path("model/config.json").write_text('{"model_type": "showo"}')
    Path("list.json").write_text("{}")
    for name, tokens in (("said.json", [[1, 2]]), ("ragged.json", [[1, 2], [3]])):
        message = {"role": "assistant", "content": [{"type": "image", "tokens": tokens}]}
        Path(name).write_text(json.dumps([message]))
    Path("strange.jsonl").write_text('{"a": 1}\n')
    for folder in ("full", "d-1.png", "d.settings.json"):
        Path(folder).mkdir()
    Path("full/thesis.txt").write_text("mine")
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    return empty_folder


def words_of(line: str) -> list[str]:
    """Split a command line. The words in capitals stand for what cannot be written there."""
    strange = {"EMPTY": "", "aNULb": "a\0b", "BYTES": "\udcff"}
    words = [strange.get(word, word).replace("LONG", "x" * 5000) for word in line.split()]
    return [re.sub(r"LENGTH(\d+)(\.\w+)", lambda m: "x" * (int(m[1]) - len(m[2])) + m[2], word) for word in words]


@pytest.mark.slow
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
