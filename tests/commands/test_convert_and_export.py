"""The commands `showo-hf convert` and `showo-hf export`."""

import pytest
from originals import TEXT_TOKENIZER, small_magvitv2, small_showo, write_original

from showo_hf import cli
from showo_hf.conversion import convert_magvitv2


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


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "--showo", "absent", "--image-tokenizer", "absent", "--text-tokenizer", "absent"],
        ["export", "absent"],
    ],
)
def test_errors_are_reported_as_in_the_other_commands(command, tmp_path, capsys):
    command = [*command, "--output", str(tmp_path / "out")]
    assert cli.main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    line = printed.err.splitlines()[-1]
    assert line.startswith("showo-hf: error: ") and "absent" in line
    assert cli.main([*command, "--debug"]) == 2
    printed = capsys.readouterr()
    assert "Traceback" in printed.err and printed.err.splitlines()[-1] == line


def test_a_failed_upload_keeps_the_output(tmp_path, monkeypatch, capsys):
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command = ["--image-tokenizer", str(tmp_path / "magvitv2"), "--output", str(tmp_path / "ours")]
    assert convert_magvitv2.main([*command, "--push-to-hub", "someone/tokenizer"]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'ours'}\n" and (tmp_path / "ours" / "config.json").is_file()
    assert f"error: '{tmp_path / 'ours'}' is complete, but the upload failed: " in printed.err
    assert "Traceback" not in printed.err


def test_a_module_reports_one_sentence(tmp_path, capsys):
    command = ["--image-tokenizer", str(tmp_path / "absent"), "--output", str(tmp_path / "ours")]
    assert convert_magvitv2.main([*command, "--push-to-hub", "not a name"]) == 1
    assert convert_magvitv2.main(command) == 1
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == "" and "Traceback" not in printed.err
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)


@pytest.mark.parametrize("size", ["2", "GB", "0GB", "2GiBB"])
def test_a_shard_size_has_a_unit(size, capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", "x", "--output", "y", "--max-shard-size", size])
    assert "such as 2GB" in capsys.readouterr().err
