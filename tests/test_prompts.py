"""Prompt sets: the shipped one loads, and every other form is an error that names the part."""

import json

import pytest

from eval.prompts import load_prompts


PAIR = {"positive": ["There is edema"], "negative": ["There is no edema"]}
GOOD = {"name": "one", "version": "1.0", "labels": {"Edema": PAIR}}


def _write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_shipped_prompts_load_with_a_pair_for_every_label():
    prompts = load_prompts("eval/prompts/covid_cxr.json")
    assert {"COVID-19", "ARDS", "No Finding", "Pneumocystis", "Streptococcus", "Pneumonia"} <= set(prompts.labels)
    assert all(pair.positive and pair.negative for pair in prompts.labels.values())


def test_labels_keep_the_order_of_the_file_and_texts_come_once(tmp_path):
    pairs = {"Z": PAIR, "A": {"positive": ["new"], "negative": ["There is no edema"]}}
    prompts = load_prompts(_write(tmp_path / "p.json", GOOD | {"labels": pairs}))
    assert list(prompts.labels) == ["Z", "A"]
    assert prompts.texts == ["There is edema", "There is no edema", "new"]


def test_hash_follows_the_prompts_and_not_the_layout(tmp_path):
    hashes = [
        load_prompts(_write(tmp_path / "p.json", data)).sha256
        for data in (GOOD, json.dumps(GOOD, indent=4), GOOD | {"labels": {"Oedema": PAIR}})
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "must be JSON"),
        ('{"name": "a", "name": "b"}', "repeated keys \\['name'\\]"),
        ([], "must hold a JSON object, got list"),
        (GOOD | {"threshold": 1}, "got also \\['threshold'\\]"),
        (GOOD | {"version": 1}, "`version` of .* must be a text, got 1"),
        (GOOD | {"labels": {}}, "`labels` of .* at least one label"),
        (GOOD | {"labels": {"Edema": {"positive": ["x"]}}}, "label 'Edema' .* got \\['positive'\\]"),
        (GOOD | {"labels": {"Edema": PAIR | {"negative": []}}}, "`negative` of label 'Edema'"),
        (GOOD | {"labels": {"Edema": PAIR | {"negative": [" "]}}}, "none empty"),
        (GOOD | {"labels": {"Edema": PAIR | {"negative": ["a", "a"]}}}, "must not repeat a prompt"),
        (GOOD | {"labels": {"Edema": PAIR | {"negative": PAIR["positive"]}}}, "on both sides"),
    ],
)
def test_other_form_is_an_error_that_names_the_part(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        load_prompts(_write(tmp_path / "p.json", data))


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.json, which is no file"):
        load_prompts("nowhere.json")
