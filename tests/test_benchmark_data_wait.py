from types import SimpleNamespace

import pytest
from tiny import make_config

from benchmarks import data_wait
from benchmarks.data_wait import FIGURES, main, measure_run, measure_workers, prepare_run


def test_a_run_over_made_records_tells_how_long_it_waits_and_what_its_workers_can_give(tmp_path):
    config = make_config(use_adapters=False, missing_views="skip")
    run = prepare_run(tmp_path, config, 48, {"batch_size": 4, "num_workers": 1, "log_every": 2})
    assert measure_workers(run, num_rounds=2) > 0
    figures = measure_run(run)
    assert figures.keys() == set(FIGURES)
    assert figures["studies_per_second"] > 0 and 0 <= figures["data_wait_share"] < 1


def test_too_few_studies_to_measure_are_an_error(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["data_wait", "--num-studies", "100", "--batch-size", "10", "--num-workers", "3"])
    with pytest.raises(SystemExit):
        main()
    assert "`--num-studies` must be at least 240" in capsys.readouterr().err


def test_batches_that_lie_ready_are_not_counted_for_the_workers(monkeypatch):
    # Six come at once, two of each worker, and then three of every 0.2 s: 30 batches of 4 in 2 s are 60 a second.
    clock = [0.0]

    def batches(run):
        for number in range(100):
            clock[0] += 0.2 if number >= 6 and number % 3 == 0 else 0
            yield number

    monkeypatch.setattr(data_wait, "iterate_batches", batches)
    monkeypatch.setattr(data_wait.time, "perf_counter", lambda: clock[0])
    run = SimpleNamespace(args=SimpleNamespace(num_workers=3, batch_size=4))
    assert measure_workers(run, num_rounds=10) == pytest.approx(60)
