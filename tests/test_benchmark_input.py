import json

import pytest

from benchmarks import input as input_benchmark


def test_the_input_gives_the_tensors_of_the_plain_form_and_tells_where_its_time_goes(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["input", "--num-studies", "8", "--rounds", "1"])
    input_benchmark.main()
    result = json.loads(capsys.readouterr().out)
    assert result["studies_per_second"].keys() == result["ratio"].keys() == {"png", "tiff", "plain"}
    assert min(result["studies_per_second"].values()) > 0 and result["ratio"]["plain"] == 1
    assert result["stages"]["share"].keys() == {*input_benchmark.STAGES, "rest"}
    assert sum(result["stages"]["share"].values()) == pytest.approx(1, abs=0.01)


def test_a_form_that_gives_other_tensors_is_an_error():
    loader, plain = [{"study_id": ["a"]}], [{"study_id": ["b"]}]
    with pytest.raises(ValueError, match="Both forms must give the same `study_id`"):
        input_benchmark.check_equal(loader, plain)
