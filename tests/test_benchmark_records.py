import json

import pytest

from benchmarks.records import main, measure_parts
from benchmarks.synthetic import write_radiographs


def test_benchmark_prints_rates_and_shares_as_json(tmp_path, monkeypatch, capsys):
    write_radiographs(tmp_path, 2, (600, 700), "jpg")
    command = ["records", "--root", str(tmp_path), "--num-studies", "6", "--num-proc", "1", "--memory-studies", "9"]
    monkeypatch.setattr("sys.argv", command)
    main()
    result = json.loads(capsys.readouterr().out)
    assert result["run"][0]["studies"] == 6 and result["run"][0]["studies_per_second_per_core"] > 0
    assert sum(result["parts"]["share"].values()) == pytest.approx(1, abs=0.01)
    assert result["memory"]["studies"] == 9 and result["memory"]["peak_memory_megabytes"] > 50


def test_each_part_takes_time(tmp_path):
    names = write_radiographs(tmp_path, 2, (900, 1200), "jpg")
    parts = measure_parts(tmp_path / name for name in names)
    assert parts["images"] == 2 and all(value > 0 for value in parts["milliseconds_per_image"].values())
