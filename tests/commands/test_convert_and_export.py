"""The commands `showo-hf convert` and `showo-hf export`."""

import pytest
from originals import TEXT_TOKENIZER, small_magvitv2, small_showo, write_original

from showo_hf import cli


def test_convert_and_export(tmp_path, capsys):
    weights, config = small_showo()
    write_original(tmp_path / "showo", weights, config)
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    sources = ["--showo", str(tmp_path / "showo"), "--image-tokenizer", str(tmp_path / "magvitv2")]
    output = ["--text-tokenizer", str(TEXT_TOKENIZER), "--output", str(tmp_path / "ours")]
    assert cli.main(["convert", *sources, *output, "--verify"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'ours'}\n"
    assert cli.main(["convert", *sources, *output]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "exists already" in printed.err
    assert cli.main(["export", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--format", "bin"]) == 0
    assert (tmp_path / "back" / "showo" / "pytorch_model.bin").is_file()


@pytest.mark.parametrize("size", ["2", "GB", "0GB", "2GiBB"])
def test_a_shard_size_has_a_unit(size, capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", "x", "--output", "y", "--max-shard-size", size])
    assert "such as 2GB" in capsys.readouterr().err
