"""The encoding benchmark run small: its turns, its ratios, the studies it makes."""

import json
import sys
import time

import torch

from benchmarks import encode


def tiny_encoders(dtype, batch_size):
    tokens, weight = torch.randn(batch_size, 64).to(dtype), torch.randn(64, 64).to(dtype)
    products = {"alta": 1, encode.OURS: 1, encode.STUDIES: 1, "clip_transformers": 2}
    return {name: lambda count=count: [tokens @ weight for _ in range(count)][0] for name, count in products.items()}


def test_two_views_are_the_current_ones_of_half_as_many_studies():
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 2, 2)
    studies, view_mask = encode.two_view_studies(images)
    assert studies[:, :2, 0, 0, 0].tolist() == [[0, 1], [2, 3]]
    assert view_mask.tolist() == [[True, True, False, False]] * 2


def test_every_encoder_starts_a_round_in_its_turn():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds, peaks = encode.take_turns(functions, torch.float32, rounds=2, clock=time.perf_counter)
    assert "".join(calls) == "ab" + "ab" + "ba"  # the first calls are not measured
    assert [len(times) for times in (*seconds.values(), peaks)] == [2, 2, 2]


def test_command_prints_rates_ratios_and_utilisation_as_json(monkeypatch, capsys):
    monkeypatch.setattr(encode, "encoders", tiny_encoders)
    monkeypatch.setattr("sys.argv", ["encode", "--dtypes", "fp32", "--batch-size", "2", "--rounds", "1"])
    encode.main()
    result = json.loads(capsys.readouterr().out)
    figures = result["fp32"]
    assert figures["speed_over"].keys() == {"alta", "clip_transformers"}
    assert figures["gflops_per_image"]["clip_transformers"] == 2 * figures["gflops_per_image"]["alta"]
    assert 0 < figures["utilisation"] < 1 and result["threads"] == 1


def test_open_clip_is_left_out_with_a_message_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert encode.build_open_clip() is None
    assert "open_clip is left out" in capsys.readouterr().err
