import io
from collections import Counter

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import make_config
from transformers import BertTokenizer

from modeling_alta.configuration_alta import VIEW_NAMES
from processing.batches.augmentation import StudyTransform
from processing.batches.training_batch import AltaCollator, MrmCollator, TrainingStudies
from processing.records.record_stream import RecordStream
from processing.records.study_records import STUDY_FEATURES


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] lungs are clear no effusion heart is normal .".split()
REPORT = "Lungs are clear. No effusion. Heart is normal."
BROKEN = {"bytes": b"no image", "path": None}
TOKENIZER = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


def make_image(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (44, 50), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_record(study_id="s0", views=VIEW_NAMES, **changes):
    images = {name: make_image(seed) for seed, name in enumerate(VIEW_NAMES) if name in views}
    return {**dict.fromkeys(STUDY_FEATURES), "study_id": study_id, "report": REPORT, **images, **changes}


def make_dataset(*records):
    return datasets.Dataset.from_list(list(records), features=STUDY_FEATURES)


def make_studies(*records, do_augment=True, **arguments):
    records = make_dataset(*(records or [make_record()]))
    return TrainingStudies(records, StudyTransform(32, 64, do_augment), **arguments)


def make_stream(folder, *records, rows_per_group=4):
    (folder / "data").mkdir()
    path = folder / "data" / "train-00000-of-00001.parquet"
    pq.write_table(make_dataset(*records).data.table, path, row_group_size=rows_per_group)
    return RecordStream(folder, "train")


def tensors_of(batch):
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


def collate(*samples, **config):
    return AltaCollator(TOKENIZER, make_config(**({"max_report_length": 128} | config)))(list(samples))


def collate_frontals(*samples, **config):
    return MrmCollator(TOKENIZER, make_config(**({"max_report_length": 100} | config)))(list(samples))


def test_a_batch_has_everything_that_pretraining_takes():
    studies = make_studies(make_record(), make_record("s1", ["current_lateral"], report="Heart is normal."))
    batch = collate(studies[0], studies[1])
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(batch).items()}
    text = dict.fromkeys(["input_ids", "attention_mask", "masked_input_ids", "labels"], (2, 13))
    images = {"pixel_values": (2, 4, 1, 32, 32), "view_mask": (2, 4), "target_pixel_values": (2, 1, 64, 64)}
    assert shapes == text | images | {"noise": (2, 4, 16)}
    assert (batch["study_id"], batch["skipped"]) == (["s0", "s1"], [])
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


def test_a_sample_depends_on_seed_epoch_and_study_alone():
    first, again, other_seed = make_studies(seed=1), make_studies(seed=1), make_studies(seed=2)
    first.set_epoch(5)
    again[0], again.set_epoch(5)
    expected, sample = first[0], again[0]
    for name in ("pixel_values", "target_pixel_values"):
        torch.testing.assert_close(sample[name], expected[name], rtol=0, atol=0)
    for name in ("report", "mask_seed", "patch_seed"):
        assert sample[name] == expected[name]
    first.set_epoch(6)
    other_seed.set_epoch(5)
    for other in (first[0], other_seed[0]):
        assert other["mask_seed"] != expected["mask_seed"]
        assert (other["pixel_values"] - expected["pixel_values"]).abs().max() > 0.5


def test_equal_records_of_two_studies_are_augmented_differently():
    studies = make_studies(make_record("a"), make_record("b"))
    assert (studies[0]["pixel_values"] - studies[1]["pixel_values"]).abs().max() > 0.5


def test_a_sample_is_the_same_wherever_its_record_lies(tmp_path):
    records = [make_record(name) for name in "abcde"]
    studies = make_studies(*records)
    turned = TrainingStudies(make_stream(tmp_path, *records[::-1], rows_per_group=2), StudyTransform(32, 64))
    expected, batch = collate(studies[1], studies[3]), collate(*turned.__getitems__([3, 1]))
    assert batch["study_id"] == ["b", "d"]
    for name, tensor in tensors_of(batch).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_masks_do_not_depend_on_the_rest_of_the_batch():
    studies = make_studies(make_record("a", report="Heart is normal."), make_record("b"))
    alone, together = collate(studies[0]), collate(studies[1], studies[0])
    torch.testing.assert_close(together["labels"][1, :6], alone["labels"][0])
    torch.testing.assert_close(together["noise"][1], alone["noise"][0], rtol=0, atol=0)
    assert (together["noise"][1] - together["noise"][0]).abs().max() > 0.5


def test_workers_that_stay_alive_give_the_samples_of_the_main_process():
    studies = make_studies(make_record("a"), make_record("b"))
    loader = torch.utils.data.DataLoader(
        studies,
        batch_size=1,
        num_workers=2,
        persistent_workers=True,
        collate_fn=AltaCollator(TOKENIZER, make_config()),
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
    batch = collate_frontals(studies[0])
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(batch).items()}
    text = dict.fromkeys(["masked_input_ids", "attention_mask", "labels"], (1, 100))
    images = {"pixel_values": (1, 1, 32, 32), "target_pixel_values": (1, 1, 64, 64), "noise": (1, 16)}
    assert shapes == text | images
    torch.testing.assert_close(batch["pixel_values"], studies[0]["pixel_values"][:1])
    assert collate_frontals(studies[0], max_report_length=20)["labels"].shape == (1, 20)


def test_mrm_refuses_studies_without_current_frontal():
    studies = make_studies(make_record("a", ["current_lateral"]), make_record("b"))
    with pytest.raises(ValueError, match=r"`current_frontal`, got the studies \['a'\]"):
        collate_frontals(studies[0], studies[1])


@pytest.mark.parametrize("is_streamed", [False, True])
def test_records_that_cannot_train_are_left_out_and_counted(tmp_path, is_streamed):
    records = [make_record("a", ["current_lateral"]), make_record("b"), make_record("c", ["prior_frontal"])]
    records += [make_record("d", report=None), make_record("e", report=" "), make_record("f", ["prior_lateral"])]
    records += [make_record("g")]
    records = make_stream(tmp_path, *records) if is_streamed else make_dataset(*records)
    frontal, every = (TrainingStudies(records, StudyTransform(32, 64), views=v) for v in (VIEW_NAMES[:1], VIEW_NAMES))
    assert [sample["study_id"] for sample in frontal.__getitems__([0, 1])] == ["b", "g"]
    assert frontal.left_out == Counter({"no report": 2, "no current_frontal": 3})
    assert [sample["study_id"] for sample in every.__getitems__([0, 1, 2])] == ["a", "b", "g"]
    assert every.left_out == Counter({"no report": 2, "no current_frontal or current_lateral": 2})
    assert (frontal.row_groups, every.row_groups) == (([1, 1], [2, 1]) if is_streamed else (None, None))


@pytest.mark.parametrize("image", [BROKEN, {"bytes": None, "path": "absent.png"}])
def test_an_unreadable_image_is_an_error_that_names_study_and_view(image):
    with pytest.raises(ValueError, match="s7: `prior_frontal` cannot be read"):
        make_studies(make_record("s7", prior_frontal=image))[0]


def test_another_study_stands_in_for_an_unreadable_one_and_tells_it():
    records = [make_record(name, prior_frontal=BROKEN if name in "bde" else make_image(2)) for name in "abcdefg"]
    studies = make_studies(*records)
    batch = collate(*studies.__getitems__([1, 0, 3]))
    assert batch["study_id"] == ["c", "a", "f"]  # c follows b; f follows d and e
    assert [line.split(": `")[0] for line in batch["skipped"]] == ["b", "d", "e"]
    assert "`prior_frontal` cannot be read" in batch["skipped"][0]
    expected = collate(studies[2], studies[0], studies[5])
    for name, tensor in tensors_of(batch).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_a_study_of_the_same_row_group_stands_in_so_that_nothing_more_is_read(tmp_path):
    records = [make_record(name, prior_frontal=BROKEN if name == "d" else make_image(2)) for name in "abcdefgh"]
    studies = TrainingStudies(make_stream(tmp_path, *records), StudyTransform(32, 64))
    samples = studies.__getitems__([3, 0])
    assert [sample["study_id"] for sample in samples] == ["b", "a"]
    assert list(studies.records.cache) == [0]
    assert studies.__getitems__([3, 0, 1, 2])[0]["study_id"] == "e"  # its group is all in the batch


def test_nothing_readable_around_is_an_error_with_the_last_reason():
    studies = make_studies(make_record("a"), *(make_record(name, prior_lateral=BROKEN) for name in "bcd"))
    with pytest.raises(ValueError, match="near 'b: `prior_lateral`.*got 'd: `prior_lateral` cannot be read"):
        studies.__getitems__([0, 1])


def test_bad_records_and_views_are_errors():
    records = make_dataset(make_record())
    with pytest.raises(ValueError, match="`views` must be out of .* got .'front'"):
        TrainingStudies(records, StudyTransform(), views=["front"])
    with pytest.raises(ValueError, match="`views` must hold a current view, got .'prior_frontal'"):
        TrainingStudies(records, StudyTransform(), views=["prior_frontal"])
    with pytest.raises(ValueError, match=r"`records` must have the columns \['report'\]"):
        TrainingStudies(records.remove_columns("report"), StudyTransform())
    with pytest.raises(ValueError, match="`records` must hold at least one study to train on, got none; .*report': 1"):
        TrainingStudies(make_dataset(make_record(report="")), StudyTransform())


def test_a_tokenizer_without_mask_token_is_an_error():
    tokenizer = BertTokenizer(vocab=TOKENIZER.get_vocab(), mask_token=None)
    with pytest.raises(ValueError, match="must have a mask and a padding token, got None"):
        MrmCollator(tokenizer, make_config())
