import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer

from modeling_alta.configuration_alta import VIEW_NAMES, AltaConfig
from processing.augmentation import StudyTransform
from processing.study_records import STUDY_FEATURES
from processing.training_batch import AltaCollator, MrmCollator, TrainingStudies, select_current_frontals


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] lungs are clear no effusion heart is normal .".split()
REPORT = "Lungs are clear. No effusion. Heart is normal."
TOKENIZER = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


def make_image(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (44, 50), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_record(study_id="s0", views=VIEW_NAMES, **changes):
    images = {name: make_image(seed) for seed, name in enumerate(VIEW_NAMES) if name in views}
    return {**dict.fromkeys(STUDY_FEATURES), "study_id": study_id, "report": REPORT, **images, **changes}


def make_studies(*records, do_augment=True, **arguments):
    records = datasets.Dataset.from_list(list(records) or [make_record()], features=STUDY_FEATURES)
    return TrainingStudies(records, StudyTransform(32, 64, do_augment), **arguments)


def collate(*samples, **config):
    return AltaCollator(TOKENIZER, AltaConfig(**config))(list(samples))


def test_a_batch_has_everything_that_pretraining_takes():
    studies = make_studies(make_record(), make_record("s1", ["current_lateral"], report="Heart is normal."))
    batch = collate(studies[0], studies[1])
    shapes = {name: tuple(tensor.shape) for name, tensor in batch.items() if name != "study_id"}
    text = dict.fromkeys(["input_ids", "attention_mask", "masked_input_ids", "labels"], (2, 13))
    images = {"pixel_values": (2, 4, 3, 32, 32), "view_mask": (2, 4), "target_pixel_values": (2, 3, 64, 64)}
    assert shapes == text | images
    assert batch["study_id"] == ["s0", "s1"]
    assert batch["view_mask"].tolist() == [[True] * 4, [False, True, False, False]]
    assert batch["target_pixel_values"][0].ne(0).any() and batch["target_pixel_values"][1].eq(0).all()


def test_reports_are_padded_to_the_longest_and_masked_by_half():
    studies = make_studies(make_record(), make_record("s1", report="Heart is normal."))
    batch = collate(studies[0], studies[1])
    assert batch["attention_mask"].sum(-1).tolist() == [13, 6]
    is_padding = batch["attention_mask"] == 0
    for name, value in {"input_ids": 0, "masked_input_ids": 0, "labels": -100}.items():
        assert batch[name][is_padding].eq(value).all()
    is_masked = batch["labels"] != -100
    assert is_masked.sum(-1).tolist() == [6, 2]  # round(11 / 2) and 4 / 2
    assert batch["masked_input_ids"][is_masked].eq(TOKENIZER.mask_token_id).all()
    torch.testing.assert_close(batch["labels"][is_masked], batch["input_ids"][is_masked])


def test_reports_are_truncated_to_the_configured_length():
    batch = collate(make_studies()[0], max_report_length=6)
    assert batch["input_ids"].shape == (1, 6)
    assert batch["input_ids"][0, -1] == TOKENIZER.sep_token_id


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    first, again, other_seed = make_studies(seed=1), make_studies(seed=1), make_studies(seed=2)
    first.set_epoch(5)
    again[0], again.set_epoch(5)
    expected, sample = first[0], again[0]
    for name in ("pixel_values", "target_pixel_values"):
        torch.testing.assert_close(sample[name], expected[name], rtol=0, atol=0)
    assert (sample["report"], sample["mask_seed"]) == (expected["report"], expected["mask_seed"])
    first.set_epoch(6)
    other_seed.set_epoch(5)
    for other in (first[0], other_seed[0]):
        assert other["mask_seed"] != expected["mask_seed"]
        assert (other["pixel_values"] - expected["pixel_values"]).abs().max() > 0.5


def test_equal_records_at_two_positions_are_augmented_differently():
    studies = make_studies(make_record("a"), make_record("b"))
    assert (studies[0]["pixel_values"] - studies[1]["pixel_values"]).abs().max() > 0.5


def test_masks_do_not_depend_on_the_rest_of_the_batch():
    studies = make_studies(make_record("a", report="Heart is normal."), make_record("b"))
    alone, together = collate(studies[0]), collate(studies[1], studies[0])
    torch.testing.assert_close(together["labels"][1, :6], alone["labels"][0])


def test_workers_that_stay_alive_give_the_samples_of_the_main_process():
    studies = make_studies(make_record("a"), make_record("b"))
    loader = torch.utils.data.DataLoader(
        studies, batch_size=1, num_workers=2, persistent_workers=True, collate_fn=AltaCollator(TOKENIZER, AltaConfig())
    )
    for epoch in (0, 1):
        studies.set_epoch(epoch)
        for index, batch in enumerate(loader):
            expected = collate(studies[index])
            torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"])
            torch.testing.assert_close(batch["labels"], expected["labels"])


def test_without_augmentation_a_sample_stays_the_same_but_for_the_masks():
    studies = make_studies(do_augment=False)
    first = studies[0]
    studies.set_epoch(1)
    second = studies[0]
    torch.testing.assert_close(first["pixel_values"], second["pixel_values"])
    assert first["report"] == second["report"] == REPORT
    assert first["mask_seed"] != second["mask_seed"]


def test_sentences_are_shuffled_over_the_epochs():
    studies = make_studies()
    reports = set()
    for epoch in range(12):
        studies.set_epoch(epoch)
        reports.add(studies[0]["report"])
    assert len(reports) > 2
    assert {len(report) for report in reports} == {len(REPORT)}


def test_mrm_batches_hold_current_frontals_alone():
    studies = make_studies(make_record(report=REPORT * 20), views=["current_frontal"])
    batch = MrmCollator(TOKENIZER)([studies[0]])
    shapes = {name: tuple(tensor.shape) for name, tensor in batch.items() if name != "study_id"}
    text = dict.fromkeys(["masked_input_ids", "attention_mask", "labels"], (1, 100))
    assert shapes == text | {"pixel_values": (1, 3, 32, 32), "target_pixel_values": (1, 3, 64, 64)}
    torch.testing.assert_close(batch["pixel_values"], studies[0]["pixel_values"][:1])
    assert MrmCollator(TOKENIZER, max_report_length=20)([studies[0]])["labels"].shape == (1, 20)


def test_mrm_refuses_studies_without_current_frontal_and_they_can_be_left_out():
    records = [make_record("a", ["current_lateral"]), make_record("b"), make_record("c", ["current_lateral"])]
    studies = make_studies(*records)
    with pytest.raises(ValueError, match=r"`current_frontal`, got the studies \['a'\]"):
        MrmCollator(TOKENIZER)([studies[0], studies[1]])
    kept = select_current_frontals(datasets.Dataset.from_list(records, features=STUDY_FEATURES))
    assert kept["study_id"][:] == ["b"] and kept[0]["current_frontal"].size == (50, 44)


@pytest.mark.parametrize("image", [{"bytes": b"no image", "path": None}, {"bytes": None, "path": "absent.png"}])
def test_an_unreadable_image_is_an_error_that_names_study_and_view(image):
    with pytest.raises(ValueError, match="`prior_frontal` of study 's7' cannot be read"):
        make_studies(make_record("s7", prior_frontal=image))[0]


@pytest.mark.parametrize("report", [None, "  "])
def test_a_record_without_report_is_an_error_that_names_the_study(report):
    with pytest.raises(ValueError, match="`report` of study 's7' must hold text"):
        make_studies(make_record("s7", report=report))[0]


def test_bad_records_and_views_are_errors():
    records = datasets.Dataset.from_list([make_record()], features=STUDY_FEATURES)
    with pytest.raises(ValueError, match="`views` must be out of .* got .'front'"):
        TrainingStudies(records, StudyTransform(), views=["front"])
    with pytest.raises(ValueError, match=r"`records` must have the columns \['report'\]"):
        TrainingStudies(records.remove_columns("report"), StudyTransform())
    with pytest.raises(ValueError, match="`records` must hold at least one study"):
        TrainingStudies(records.select([]), StudyTransform())


def test_a_tokenizer_without_mask_token_is_an_error():
    tokenizer = BertTokenizer(vocab=TOKENIZER.get_vocab(), mask_token=None)
    with pytest.raises(ValueError, match="must have a mask and a padding token, got None"):
        MrmCollator(tokenizer)
