"""The commands `showo-hf convert` and `showo-hf export`."""

import argparse
import re
import subprocess
import sys

import pytest
from originals import TEXT_TOKENIZER, small_magvitv2, small_showo, write_original

from showo_hf import cli
from showo_hf.conversion import convert_magvitv2
from showo_hf.models.configuration_image_tokenizer import LARGEST_TOKENIZER
from showo_hf.models.configuration_showo import LARGEST_MODEL
from showo_hf.utils.argument_types import LARGEST_GRID, LARGEST_SIDE, square_number


def test_convert_and_export(tmp_path, capsys):
    weights, config = small_showo()
    write_original(tmp_path / "showo", weights, config)
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    sources = ["--showo", str(tmp_path / "showo"), "--image-tokenizer", str(tmp_path / "magvitv2")]
    output = ["--text-tokenizer", str(TEXT_TOKENIZER), "--output", str(tmp_path / "ours")]
    assert cli.main(["convert", *sources, *output, "--verify"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'ours'}\n"
    assert cli.main(["convert", *sources, *output]) == 2
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


def test_the_limits_of_sizes_are_those_of_the_configs():
    assert LARGEST_SIDE == LARGEST_TOKENIZER["sample_size"] and LARGEST_GRID == LARGEST_MODEL["num_image_tokens"]
    assert square_number(str(LARGEST_GRID)) == LARGEST_GRID and square_number("1") == 1
    for wrong in ("0", "255", str(LARGEST_GRID + 1), "-4", "16.0"):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"got '?{re.escape(wrong)}"):
            square_number(wrong)


@pytest.mark.parametrize("size", ["2", "GB", "0GB", "2GiBB"])
def test_a_shard_size_has_a_unit(size, capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", "x", "--output", "y", "--max-shard-size", size])
    assert "such as 2GB" in capsys.readouterr().err


VERIFY_TWICE = """
import sys
from showo_hf import cli
from transformers.utils import logging
for more in ([], ["--quiet"]):
    logging.enable_progress_bar()
    assert cli.main([*sys.argv[1:], "--verify", "--overwrite", *more]) == 0
    print("done", file=sys.stderr, flush=True)
"""


@pytest.mark.slow
def test_there_are_no_progress_bars_in_a_pipe_and_nothing_at_all_if_quiet(tmp_path):
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    words = ["convert", "--image-tokenizer", tmp_path / "magvitv2", "--output", tmp_path / "ours"]
    done = subprocess.run([sys.executable, "-c", VERIFY_TWICE, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'ours'}\n" * 2), done.stderr
    report, quiet = done.stderr.split("done\n")[:2]
    assert "largest differences from the source" in report
    assert "Loading weights" not in report and "%|" not in report and "\r" not in report
    assert quiet == ""


def test_a_module_can_be_quiet(tmp_path, capsys):
    write_original(tmp_path / "magvitv2", small_magvitv2(), None)
    command = ["--image-tokenizer", str(tmp_path / "magvitv2"), "--output", str(tmp_path / "ours"), "--quiet"]
    assert convert_magvitv2.main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'ours'}\n" and printed.err == ""
