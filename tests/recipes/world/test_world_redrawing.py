"""Questions about images as the model draws them: decoded from their tokens, and encoded again."""

import json
import random

import numpy as np
import pytest
import tiny
import torch

from recipes.image_tokens import encode_images
from recipes.world import rows
from recipes.world.objects import save_objects
from recipes.world.redrawing import Redrawer
from recipes.world.scene_maker import SceneMaker


def image_tokenizer():
    return tiny.lfq(stages=4, sample_size=96, encoder_context=False)


def decoder():
    return tiny.image_decoder(downsampling=8, sample_size=96, patch_size=4)


def drawn_scenes(objects, count=6):
    maker = SceneMaker(objects, random.Random(0))
    return rows.SceneEncoder(objects, image_tokenizer())(maker.scene() for _ in range(count))


def test_tokens_are_those_of_the_decoded_image(objects):
    images = drawn_scenes(objects)
    redrawn = Redrawer(image_tokenizer(), decoder(), 1.0)(images)
    tokenizer, network = image_tokenizer(), decoder()
    tokens = torch.tensor(list(images.values()))
    with torch.no_grad():
        plain = tokenizer.decode(tokens).sample.clamp(-1, 1)
        generator = torch.Generator().manual_seed(0)
        pixels = network.decode(tokenizer.codes_of(tokens), plain, generator=generator).sample
    saved = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).numpy().astype(np.uint8)
    assert list(redrawn) == list(images)
    assert list(redrawn.values()) == encode_images(tokenizer, saved).tolist() != tokens.tolist()


def test_a_share_of_the_scenes_is_redrawn(objects):
    images = drawn_scenes(objects, 20)
    assert Redrawer(image_tokenizer(), decoder(), 0.0)(images) == images
    some = Redrawer(image_tokenizer(), decoder(), 0.5, seed=3)(images)
    assert 4 <= sum(some[scene] != tokens for scene, tokens in images.items()) <= 16
    assert some == Redrawer(image_tokenizer(), decoder(), 0.5, seed=3)(images)
    assert some != Redrawer(image_tokenizer(), decoder(), 0.5, seed=4)(images)


def test_the_command_redraws_the_images_of_questions_alone(objects, tmp_path, monkeypatch):
    (tmp_path / "objects").mkdir()
    save_objects(objects, tmp_path / "objects")
    decoder().save_pretrained(tmp_path / "decoder")
    monkeypatch.setattr(rows, "load_tokenizer", lambda name: image_tokenizer())
    paths = ["--objects", str(tmp_path / "objects"), "--t2i", "4", "--mmu", "4", "--mixed", "4"]
    options = ["--redrawn", "1", "--image-decoder", str(tmp_path / "decoder")]
    rows.main([*paths, "--output", str(tmp_path / "plain")])
    rows.main([*paths, "--output", str(tmp_path / "redrawn"), *options])
    for task in ("t2i", "mixed"):
        assert (tmp_path / "plain" / f"{task}.jsonl").read_text() == (
            tmp_path / "redrawn" / f"{task}.jsonl"
        ).read_text()
    plain, redrawn = (
        [json.loads(line)["messages"] for line in (tmp_path / name / "mmu.jsonl").read_text().splitlines()]
        for name in ("plain", "redrawn")
    )
    for one, other in zip(plain, redrawn, strict=True):
        tokens, seen = one[0]["content"][0].pop("image_tokens"), other[0]["content"][0].pop("image_tokens")
        assert np.shape(tokens) == np.shape(seen) == (12, 12) and tokens != seen
        assert one == other, "the questions and answers are the same"


@pytest.mark.parametrize("option", [("--redrawn", "0.5"), ("--image-decoder", "decoder")])
def test_the_options_need_each_other(option, capsys):
    with pytest.raises(SystemExit):
        rows.main(list(option))
    assert "--redrawn and --image-decoder: one needs the other" in capsys.readouterr().err
