import pytest
from tiny import make_config

from benchmarks.data_wait import FIGURES, main, measure_run, measure_workers, prepare_run


def test_a_run_over_made_records_tells_how_long_it_waits_and_what_its_workers_can_give(tmp_path):
    config = make_config(use_adapters=False, missing_views="skip")
    run = prepare_run(tmp_path, config, 48, {"batch_size": 4, "num_workers": 1, "log_every": 2})
    assert measure_workers(run, num_batches=2) > 0
    figures = measure_run(run)
    assert figures.keys() == set(FIGURES)
    assert figures["studies_per_second"] > 0 and 0 <= figures["data_wait_share"] < 1


def test_too_few_studies_to_measure_are_an_error(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["data_wait", "--num-studies", "100", "--batch-size", "10", "--num-workers", "3"])
    with pytest.raises(SystemExit):
        main()
    assert "`--num-studies` must be at least 120" in capsys.readouterr().err
