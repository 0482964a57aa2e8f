"""An untrained model of the small world, an untrained judge and cut-outs, for the benchmarks as commands."""

import random
from pathlib import Path

import tiny
from benchmarks.world_detector import Detector, save_detector
from benchmarks.world_workbench import DETECTOR_STEPS, OBJECTS

from recipes.byte_pairs import train_text_tokenizer
from recipes.file_hashes import files_hash
from recipes.fresh_model import fresh_pipeline
from recipes.world.captions import caption
from recipes.world.objects import Objects, save_objects
from recipes.world.scene_maker import SceneMaker


def write(folder: Path, objects: Objects):
    """Write a model whose images have 12 x 12 tokens of 8 x 8 pixels, the judge, and the cut-outs."""
    (folder / "objects").mkdir()
    save_objects(objects, folder / "objects")
    maker = SceneMaker(objects, random.Random(0))
    texts = [caption(maker.scene(), maker.rng) for _ in range(300)]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    image_tokenizer = tiny.lfq(stages=4, sample_size=96)
    text_tokenizer = train_text_tokenizer(texts, 400, lower_case=True)
    fresh_pipeline(image_tokenizer, text_tokenizer, num_key_value_heads=2, **sizes).save_pretrained(folder / "model")
    write_judge(folder)


def write_judge(folder: Path):
    """Write a judge with random weights, which says that it was trained on the cut-outs."""
    origin = {"objects": files_hash(folder / "objects", OBJECTS), "steps": str(DETECTOR_STEPS)}
    save_detector(Detector(), folder / "judge.safetensors", origin)


def arguments_of(folder: Path) -> list[str]:
    """The options that name what [`write`] wrote."""
    paths = {"--model": "model", "--objects": "objects", "--detector": "judge.safetensors"}
    return [word for option, name in paths.items() for word in (option, str(folder / name))]
