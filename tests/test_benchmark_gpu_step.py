import pytest
import torch

from benchmarks import gpu_step


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--num-studies", "20"], "must be multiples of 24"), ([], "torch finds none here")],
)
def test_what_cannot_be_measured_is_an_error_that_says_so(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_step", *arguments])
    with pytest.raises(SystemExit):
        gpu_step.main()
    assert message in capsys.readouterr().err


def test_a_form_that_does_not_fit_is_left_out_from_there_on(monkeypatch):
    def measure(form, num_studies, args):
        if form == "plain" and num_studies > 24:
            raise torch.cuda.OutOfMemoryError
        return {"form": form, "num_studies": num_studies}

    monkeypatch.setattr(gpu_step, "measure", measure)
    args = gpu_step.argparse.Namespace(forms=["plain", "ours"], num_studies=[24, 48, 96])
    rows = gpu_step.measure_sizes(args)
    assert [(row["form"], row["num_studies"], row.get("out_of_memory", False)) for row in rows] == [
        ("plain", 24, False),
        ("ours", 24, False),
        ("plain", 48, True),
        ("ours", 48, False),
        ("ours", 96, False),
    ]
