"""The benchmark of the embedded model's images: the wording of prompts, and a run on a few images."""

import json

import pytest
from benchmarks import embedded_quality as benchmark


def test_a_wording_has_one_place_for_the_caption(capsys):
    for wrong in ("draw it", "{} and {}", "{caption}", "{}}"):
        with pytest.raises(SystemExit):
            benchmark.main(["--data", "gone", "--wording", wrong])
        assert "--wording" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:A text of .* ids was cut")
def test_every_prompt_has_the_wording(capsys, folder, model, monkeypatch):
    asked = []

    def generate(pipeline, prompts, *args, **kwargs):
        asked.extend(prompts)
        return original(pipeline, prompts, *args, **kwargs)

    original = benchmark.generate
    monkeypatch.setattr(benchmark, "generate", generate)
    options = ["--data", str(folder), "--model", model, "--captions", "3", "--steps", "2", "--json"]
    benchmark.main([*options, "--wording", "can you draw {} for me?"])
    result = json.loads(capsys.readouterr().out)
    assert all(prompt.startswith("can you draw a") and prompt.endswith(" for me?") for prompt in asked)
    assert len(asked) == result["training"]["images"] + result["held out"]["images"]
    assert all(0 <= result["training"][name] <= 1 for name in ("name", "name_any_style", "style"))
