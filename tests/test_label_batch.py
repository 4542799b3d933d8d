import io

import datasets
import numpy as np
import pytest
import torch
from conftest import make_config
from PIL import Image
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from modeling_alta import AltaForImageClassification, AltaImageProcessor
from modeling_alta.configuration_alta import VIEW_NAMES
from processing.augmentation import StudyTransform
from processing.label_batch import LabelCollator, LabelledStudies, count_labels, label_settings, select_labelled
from processing.study_records import STUDY_FEATURES


NAMES = ["Edema", "Effusion", "No Finding"]
LABELS = [["Effusion"], ["Effusion", "Edema"], [], ["No Finding", "No Finding"], None]


def make_image(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (44, 50), dtype=np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_record(study_id="s0", views=VIEW_NAMES, **changes):
    images = {name: make_image(seed) for seed, name in enumerate(VIEW_NAMES) if name in views}
    return {**dict.fromkeys(STUDY_FEATURES), "study_id": study_id, **images, **changes}


def make_records(*labels):
    records = [make_record(f"s{index}", labels=item) for index, item in enumerate(labels or LABELS)]
    return datasets.Dataset.from_list(records, features=STUDY_FEATURES)


def make_studies(records=None, do_augment=True, **arguments):
    return LabelledStudies(records or make_records(), StudyTransform(32, 32, do_augment), **arguments)


def collate(labels, **arguments):
    images = {"pixel_values": torch.zeros(4, 3, 32, 32), "view_mask": torch.tensor([True] * 4)}
    samples = [{**images, "study_id": f"s{i}", "labels": item or []} for i, item in enumerate(labels)]
    return LabelCollator(NAMES, **arguments)(samples)["labels"]


def test_vocabulary_is_sorted_and_counts_studies():
    records = make_records()
    assert list(count_labels(records).items()) == [("Edema", 1), ("Effusion", 2), ("No Finding", 1)]
    assert count_labels(records.to_iterable_dataset()) == count_labels(records)


def test_vocabulary_of_unlabelled_records_is_an_error():
    with pytest.raises(ValueError, match="`records` must hold at least one study with a label"):
        count_labels(make_records([], None))


def test_vocabulary_becomes_the_settings_of_a_classifier():
    settings = label_settings(NAMES)
    model = AltaForImageClassification(make_config(**settings))
    assert (model.config.num_labels, model.config.id2label[1]) == (3, "Effusion")
    assert model.config.label2id["No Finding"] == 2


@pytest.mark.parametrize("names", [[], ["Edema", "Edema"]])
def test_vocabulary_without_names_or_with_one_twice_is_an_error(names):
    with pytest.raises(ValueError, match="`names` must be at least one label and each once"):
        label_settings(names)


def test_studies_without_a_label_can_be_left_out():
    assert select_labelled(make_records())["study_id"][:] == ["s0", "s1", "s3"]


def test_labels_become_ones_and_zeros_and_unlabelled_studies_unknown():
    nan = torch.nan
    expected = torch.tensor([[0, 1, 0], [1, 1, 0], [nan] * 3, [0, 0, 1], [nan] * 3])
    assert_close(collate(LABELS), expected, equal_nan=True)
    assert collate(LABELS, unlabelled="negative")[2].tolist() == [0, 0, 0]


def test_label_outside_the_vocabulary_says_that_the_others_do_not_hold():
    assert collate([["Fracture"]]).tolist() == [[0, 0, 0]]


def test_single_labels_become_indices_and_unknown_ones_are_left_out():
    labels = [["Effusion"], ["No Finding", "No Finding"], [], ["Fracture"]]
    assert collate(labels, problem_type="single_label_classification").tolist() == [1, 2, -100, -100]
    with pytest.raises(ValueError, match="`labels` of study 's0' must be one at most, got .'Edema', 'Effusion'."):
        collate([["Edema", "Effusion"]], problem_type="single_label_classification")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problem_type": "regression"}, "`problem_type` must be one of .* got 'regression'"),
        ({"unlabelled": "no"}, "`unlabelled` must be one of .*, got 'no'"),
        ({"problem_type": "single_label_classification", "unlabelled": "negative"}, "`unlabelled` must be 'unknown'"),
    ],
)
def test_bad_settings_of_the_collator_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelCollator(NAMES, **arguments)


def test_a_batch_has_everything_that_a_classifier_takes():
    studies, collator = make_studies(), LabelCollator(NAMES)
    loader = torch.utils.data.DataLoader(studies, batch_size=5, collate_fn=collator)
    (batch,) = loader
    assert batch.pop("study_id") == ["s0", "s1", "s2", "s3", "s4"]
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pixel_values": (5, 4, 3, 32, 32),
        "view_mask": (5, 4),
        "labels": (5, 3),
    }
    loss = AltaForImageClassification(make_config(**label_settings(NAMES)))(**batch).loss
    assert loss.isfinite() and loss > 0


def test_stock_trainer_averages_accumulated_batches(tmp_path):
    torch.manual_seed(0)
    model = AltaForImageClassification(make_config(**label_settings(NAMES)))
    arguments = TrainingArguments(
        tmp_path, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2, logging_steps=1,
        remove_unused_columns=False, report_to=[], save_strategy="no", use_cpu=True,
    )  # fmt: skip
    studies = make_studies(make_records(["Edema"], ["Edema"]), do_augment=False)
    expected = model(**LabelCollator(NAMES)([studies[0], studies[1]])).loss.item()
    trainer = Trainer(model, arguments, data_collator=LabelCollator(NAMES), train_dataset=studies)
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-4)


def test_a_sample_depends_on_seed_epoch_and_study_alone():
    records = make_records()
    first, other_place = make_studies(records, seed=1), make_studies(records.select([3, 1]), seed=1)
    expected = first[1]
    assert torch.equal(other_place[1]["pixel_values"], expected["pixel_values"])
    for epoch, studies in ((1, first), (0, make_studies(records, seed=2))):
        studies.set_epoch(epoch)
        assert (studies[1]["pixel_values"] - expected["pixel_values"]).abs().max() > 0.5


def test_samples_without_augmentation_are_what_the_image_processor_gives():
    study = {name: make_image(seed) for seed, name in enumerate(VIEW_NAMES)}
    expected = AltaImageProcessor.from_image_size(32)(study, return_tensors="pt")["pixel_values"][0]
    assert_close(make_studies(do_augment=False)[0]["pixel_values"], expected)


def test_chosen_views_alone_are_read():
    studies = make_studies(views=["current_frontal"])
    assert studies[0]["view_mask"].tolist() == [True, False, False, False]


def test_records_need_no_report_but_a_current_radiograph_that_can_be_read():
    broken = {"bytes": b"no image", "path": None}
    records = [make_record("s0", ["prior_frontal"]), make_record("s1", prior_frontal=broken)]
    studies = make_studies(datasets.Dataset.from_list(records, features=STUDY_FEATURES))
    with pytest.raises(ValueError, match="must have a current radiograph, got none for study 's0'"):
        studies[0]
    with pytest.raises(ValueError, match="`prior_frontal` of study 's1' cannot be read"):
        studies[1]


def test_bad_records_and_views_are_errors():
    records = make_records()
    with pytest.raises(ValueError, match="`views` must be out of .* got .'front'"):
        make_studies(records, views=["front"])
    with pytest.raises(ValueError, match=r"`records` must have the columns \['labels'\]"):
        make_studies(records.remove_columns("labels"))
    with pytest.raises(ValueError, match="`records` must hold at least one study"):
        LabelledStudies(records.select([]), StudyTransform())
