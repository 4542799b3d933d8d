import pytest

from benchmarks.gradient_cache import main


@pytest.mark.parametrize("studies", ["20", "4"])
def test_studies_that_no_parts_make_up_are_an_error(monkeypatch, capsys, studies):
    monkeypatch.setattr("sys.argv", ["gradient_cache", "--studies", "16", studies])
    with pytest.raises(SystemExit):
        main()
    assert f"`--studies` must be multiples of `--micro-batch-size` 8, got [16, {studies}]" in capsys.readouterr().err
