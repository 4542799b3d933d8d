from collections import Counter

import pytest
import torch
from test_training_batch import BROKEN, make_dataset, make_image, make_record, make_stream
from tiny import make_config
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from modeling_alta import AltaForImageClassification, AltaImageProcessor
from modeling_alta.configuration_alta import VIEW_NAMES
from processing.batches.augmentation import StudyTransform
from processing.batches.batch_order import BatchOrder
from processing.batches.label_batch import LabelCollator, LabelledStudies, count_labels, label_settings
from processing.batches.training_loader import make_training_loader


NAMES = ["Edema", "Effusion", "No Finding"]
LABELS = [["Effusion"], ["Effusion", "Edema"], [], ["No Finding", "No Finding"], None]


def make_labelled(*labels):
    labels = labels or LABELS
    return [make_record(f"s{index}", report=None, labels=names) for index, names in enumerate(labels)]


def make_studies(*records, do_augment=True, **arguments):
    records = make_dataset(*(records or make_labelled()))
    return LabelledStudies(records, StudyTransform(32, 32, do_augment), **arguments)


def collate(labels, **arguments):
    images = {"pixel_values": torch.zeros(4, 3, 32, 32), "view_mask": torch.tensor([True] * 4), "skipped": []}
    samples = [{**images, "study_id": f"s{index}", "labels": names} for index, names in enumerate(labels)]
    return LabelCollator(NAMES, **arguments)(samples)["labels"]


def test_vocabulary_is_sorted_and_counts_studies(tmp_path):
    records = make_labelled()
    assert list(count_labels(make_dataset(*records)).items()) == [("Edema", 1), ("Effusion", 2), ("No Finding", 1)]
    assert count_labels(make_stream(tmp_path, *records)) == count_labels(make_dataset(*records))


def test_vocabulary_of_unlabelled_records_is_an_error():
    with pytest.raises(ValueError, match="`records` must hold at least one study with a label"):
        count_labels(make_dataset(*make_labelled([], None)))


def test_vocabulary_becomes_the_settings_of_a_classifier():
    settings = label_settings(NAMES)
    model = AltaForImageClassification(make_config(**settings))
    assert (model.config.num_labels, model.config.id2label[1]) == (3, "Effusion")
    assert model.config.label2id["No Finding"] == 2


@pytest.mark.parametrize("names", [[], ["Edema", "Edema"]])
def test_vocabulary_without_names_or_with_one_twice_is_an_error(names):
    with pytest.raises(ValueError, match="`names` must be at least one label and each once"):
        label_settings(names)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_unlabelled_studies_are_left_out_and_counted_or_negative_as_chosen(is_streamed, tmp_path):
    records = [*make_labelled(), make_record("s5", ["prior_frontal"], labels=["Edema"])]
    records = make_stream(tmp_path, *records) if is_streamed else make_dataset(*records)
    studies = LabelledStudies(records, StudyTransform(32, 32))
    assert [studies[index]["study_id"] for index in range(len(studies))] == ["s0", "s1", "s3"]
    assert studies.left_out == Counter({"no labels": 2, "no current_frontal or current_lateral": 1})
    studies = LabelledStudies(records, StudyTransform(32, 32), unlabelled="negative")
    assert [studies[index]["labels"] for index in (2, 4)] == [[], []]
    assert studies.left_out == Counter({"no current_frontal or current_lateral": 1})


def test_labels_become_ones_and_zeros():
    assert collate([["Effusion"], ["Effusion", "Edema"], []]).tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_label_outside_the_vocabulary_says_that_the_others_do_not_hold():
    assert collate([["Fracture"]]).tolist() == [[0, 0, 0]]


def test_single_labels_become_indices_and_unknown_ones_are_left_out():
    labels = [["Effusion"], ["No Finding", "No Finding"], [], ["Fracture"]]
    assert collate(labels, problem_type="single_label_classification").tolist() == [1, 2, -100, -100]
    with pytest.raises(ValueError, match="`labels` of study 's0' must be one at most, got .'Edema', 'Effusion'."):
        collate([["Edema", "Effusion"]], problem_type="single_label_classification")


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`problem_type` must be one of .* got 'regression'"):
        LabelCollator(NAMES, "regression")
    with pytest.raises(ValueError, match="`unlabelled` must be one of .*, got 'unknown'"):
        make_studies(unlabelled="unknown")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_batch_of_the_training_loader_has_everything_that_a_classifier_takes(is_streamed, tmp_path):
    records = make_labelled()
    records = make_stream(tmp_path, *records) if is_streamed else make_dataset(*records)
    studies = LabelledStudies(records, StudyTransform(32, 32))
    order = BatchOrder(3, 3, seed=0, row_groups=studies.row_groups)
    (batch,) = make_training_loader(studies, order, LabelCollator(NAMES))
    assert sorted(batch.pop("study_id")) == ["s0", "s1", "s3"] and batch.pop("skipped") == []
    shapes = {"pixel_values": (3, 4, 1, 32, 32), "view_mask": (3, 4), "labels": (3, 3)}
    assert {name: tuple(value.shape) for name, value in batch.items()} == shapes
    loss = AltaForImageClassification(make_config(**label_settings(NAMES)))(**batch).loss
    assert loss.isfinite() and loss > 0


def test_another_study_stands_in_for_an_unreadable_one_and_tells_it():
    records = make_labelled(["Edema"], ["Effusion"], ["Effusion"])
    records[1] |= {"prior_frontal": BROKEN}
    samples = make_studies(*records).__getitems__([0, 1])
    batch = LabelCollator(NAMES)(samples)
    assert batch["study_id"] == ["s0", "s2"] and "s1: `prior_frontal` cannot be read" in batch["skipped"][0]


def test_stock_trainer_averages_accumulated_batches(tmp_path):
    torch.manual_seed(0)
    model = AltaForImageClassification(make_config(**label_settings(NAMES)))
    arguments = TrainingArguments(
        tmp_path, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2, logging_steps=1,
        remove_unused_columns=False, report_to=[], save_strategy="no", use_cpu=True,
    )  # fmt: skip
    studies = make_studies(*make_labelled(["Edema"], ["Edema"]), do_augment=False)
    expected = model(**LabelCollator(NAMES)([studies[0], studies[1]])).loss.item()
    trainer = Trainer(model, arguments, data_collator=LabelCollator(NAMES), train_dataset=studies)
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-4)


def test_a_sample_depends_on_seed_epoch_and_study_alone():
    records = make_labelled()
    first, other_place = make_studies(*records, seed=1), make_studies(records[3], records[1], seed=1)
    expected = first[1]
    assert torch.equal(other_place[1]["pixel_values"], expected["pixel_values"])
    for epoch, studies in ((1, first), (0, make_studies(*records, seed=2))):
        studies.set_epoch(epoch)
        assert (studies[1]["pixel_values"] - expected["pixel_values"]).abs().max() > 0.5


def test_samples_without_augmentation_are_what_the_image_processor_gives():
    study = {name: make_image(seed) for seed, name in enumerate(VIEW_NAMES)}
    expected = AltaImageProcessor.from_image_size(32)(study, return_tensors="pt")["pixel_values"][0]
    assert_close(make_studies(do_augment=False)[0]["pixel_values"].expand(-1, 3, -1, -1), expected)


def test_chosen_views_alone_are_read():
    studies = make_studies(views=["current_frontal"])
    assert studies[0]["view_mask"].tolist() == [True, False, False, False]


def test_records_without_labels_column_are_an_error():
    with pytest.raises(ValueError, match=r"`records` must have the columns \['labels'\]"):
        LabelledStudies(make_dataset(*make_labelled()).remove_columns("labels"), StudyTransform())
    with pytest.raises(ValueError, match="at least one study to train on, got none; left out: {'no labels': 2}"):
        make_studies(*make_labelled([], None))
