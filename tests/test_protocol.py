"""The head of a protocol's JSON: hashes that depend on what they should, and no path of a machine."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from repositories import make_adapter, make_base, make_full, make_processor
from tiny import make_batch, make_config, randomise

from eval.protocol import (
    RunOptions,
    describe_run,
    load_model,
    preprocessing_sha256,
    protocol_parser,
    study_ids_sha256,
    write_json,
)
from modeling_alta import AltaAdapterConfig, AltaForImageClassification, AltaForMaskedRecordModeling, AltaModel
from modeling_alta.export_alta import export_adapter, export_full
from modeling_alta.fold_alta import AltaFoldedModel
from tests.fake_model import FakeProcessor


def _processor(**settings):
    return SimpleNamespace(image_processor=SimpleNamespace(to_dict=lambda: settings))


def test_hash_of_the_studies_ignores_their_order_only():
    assert study_ids_sha256(["a", "b"]) == study_ids_sha256(["b", "a"])
    assert study_ids_sha256(["a", "b"]) != study_ids_sha256(["ab"])


def test_preprocessing_hash_depends_on_the_settings_and_not_on_the_version():
    one = preprocessing_sha256(_processor(image_mean=[0.4785], transformers_version="5.23.0"))
    assert one == preprocessing_sha256(_processor(image_mean=[0.4785], transformers_version="5.24.0"))
    assert one != preprocessing_sha256(_processor(image_mean=[0.5]))


def test_folders_are_named_by_their_last_part_and_hub_ids_in_full(tmp_path):
    (tmp_path / "records").mkdir()
    options = RunOptions("tester/alta", f"{tmp_path}/records/", "test")
    run = describe_run({"name": "p"}, options, ["a", "b"], FakeProcessor())
    assert (run["model"], run["records"], run["n"]) == ("tester/alta", "records", 2)
    assert str(tmp_path) not in json.dumps(run)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--output", ".", "must be a file, got the folder '.'"), ("--seed", "-1", "must be an integer of at least 0")],
)
def test_an_argument_that_would_fail_at_the_end_is_refused_at_the_start(capsys, option, value, message):
    needed = ["--model", "m", "--records", "r", "--output", "out.json"]
    with pytest.raises(SystemExit):
        protocol_parser("eval.retrieval", "").parse_args([*needed, option, value])
    assert message in capsys.readouterr().err


def test_figure_that_is_not_a_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json({"value": float("nan")}, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_full_model_is_evaluated_in_its_inference_form(tmp_path):
    model, batch = make_full(), make_batch()
    export_full(model, make_processor(), tmp_path)
    loaded, _ = load_model(str(tmp_path))
    expected = model.get_image_features(batch["pixel_values"], batch["view_mask"])
    assert isinstance(loaded, AltaFoldedModel)
    torch.testing.assert_close(
        loaded.get_image_features(batch["pixel_values"], batch["view_mask"]), expected, rtol=0, atol=1e-5
    )


def test_adapter_over_a_base_is_evaluated_as_it_is(tmp_path):
    export_full(make_base(), make_processor(), tmp_path / "base")
    export_adapter(make_adapter(), make_processor(), tmp_path / "adapter", base=tmp_path / "base")
    loaded, _ = load_model(str(tmp_path / "adapter"))
    assert loaded.peft_config and not isinstance(loaded, AltaFoldedModel)


@pytest.mark.parametrize("model_class", [AltaForImageClassification, AltaForMaskedRecordModeling])
def test_model_without_a_report_tower_and_projections_is_refused(model_class, tmp_path):
    model_class(make_config(use_adapters=False)).save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must be an aligned model, got .* without \['image_local_projection\."):
        load_model(str(tmp_path))


def test_adapter_of_a_classifier_is_refused(tmp_path):
    export_full(make_base(), make_processor(), tmp_path / "base")
    classifier = AltaForImageClassification.from_pretrained(tmp_path / "base", num_labels=3)
    tuned = randomise(get_peft_model(classifier, AltaAdapterConfig()))
    export_adapter(tuned, make_processor(), tmp_path / "adapter", base=tmp_path / "base")
    with pytest.raises(ValueError, match="must be an aligned model, got .* and with .*classifier"):
        load_model(str(tmp_path / "adapter"))


def test_adapter_that_leaves_what_its_base_lacks_untrained_is_refused(tmp_path):
    AltaForMaskedRecordModeling(make_config(use_adapters=False)).save_pretrained(tmp_path / "base")
    heads = ["text_model", *AltaAdapterConfig().modules_to_save]
    endings = ["text_model", "projection", "scale", "scales", "study_tokens"]
    for name, saved in (("without", None), ("with", heads), ("endings", endings)):
        base = AltaModel.from_pretrained(tmp_path / "base")
        config = LoraConfig(target_modules=["qkv"], modules_to_save=saved)
        get_peft_model(base, config).save_pretrained(tmp_path / name)
        make_processor().save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match=r"must be an aligned model, got .* without \['image_local_projection\."):
        load_model(str(tmp_path / "without"))
    for name in ("with", "endings"):
        assert load_model(str(tmp_path / name))[0].peft_config


def test_adapter_over_a_base_of_another_size_is_an_error_that_names_the_model(tmp_path):
    export_full(make_base(), make_processor(), tmp_path / "base")
    tuned = get_peft_model(AltaModel(make_config(use_adapters=False, projection_dim=8)), AltaAdapterConfig())
    export_adapter(tuned, make_processor(), tmp_path / "adapter", base=tmp_path / "base")
    with pytest.raises(ValueError, match="`model` must be a Hub folder or a Hub id of an ALTA model, got .*adapter"):
        load_model(str(tmp_path / "adapter"))
