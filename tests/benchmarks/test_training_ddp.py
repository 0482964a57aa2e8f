import pytest
import training_ddp


@pytest.mark.slow
def test_the_benchmark_prints_a_table(capsys):
    training_ddp.main(["--small", "--rounds", "1", "--steps", "1"])
    assert "DDP with 2 processes of 1 thread / 1 process with 2 threads" in capsys.readouterr().out
