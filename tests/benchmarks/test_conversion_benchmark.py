"""The conversion benchmark runs at tiny sizes. The tests do not check its measurements."""

import conversion
import make_original
import pytest
from originals import TEXT_TOKENIZER

from showo_hf.conversion.checkpoint import Checkpoint


@pytest.mark.slow
def test_it_prints_a_row_for_each_form(tmp_path, capsys):
    forms = ["safetensors", "sharded bin"]
    arguments = ["--small", "--verify", "--text-tokenizer", str(TEXT_TOKENIZER), "--workspace", str(tmp_path)]
    conversion.main([*arguments, "--forms", *forms])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == forms
    assert all("logits" in line for line in lines[2:4])
    assert any(line.startswith("| time of the image |") for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", make_original.FORMATS)
def test_the_made_checkpoint_has_the_original_s_names(tmp_path, form):
    config = make_original.config_of(hidden=64, layers=1, intermediate=8)
    showo, tokenizer = make_original.original_layout(config)
    make_original.write(tmp_path, showo, {}, form, {})
    assert set(Checkpoint(tmp_path)) == set(showo)
    assert "encoder.mid.attn_1.q.weight" in tokenizer and tokenizer["encoder.mid.attn_1.q.weight"].shape[2:] == (1, 1)
