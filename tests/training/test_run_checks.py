"""What a run says before it starts."""

import pytest
from transformers import TrainingArguments

from showo_hf.training import run_checks


@pytest.mark.parametrize(
    ("bf16", "is_fast", "warned"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_it_warns_of_bf16_on_a_cpu_that_lacks_it(monkeypatch, tmp_path, capsys, bf16, is_fast, warned):
    monkeypatch.setattr(run_checks, "computes_bfloat16", lambda: is_fast)
    run_checks.warn_of_slow_bf16(TrainingArguments(str(tmp_path), use_cpu=True, bf16=bf16, report_to="none"))
    printed = capsys.readouterr().err
    assert ("bf16=false is many times faster" in printed, printed.count("\n")) == (warned, int(warned))
