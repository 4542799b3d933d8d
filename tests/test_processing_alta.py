import numpy as np
import pytest
import torch
from transformers import AutoProcessor, BertTokenizer

import modeling_alta  # noqa: F401 - registers the classes
from modeling_alta.image_processing_alta import AltaImageProcessor
from modeling_alta.processing_alta import AltaProcessor


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] left right pleural effusion".split()


def make_processor(model_max_length=8):
    vocab = {word: index for index, word in enumerate(WORDS)}
    tokenizer = BertTokenizer(vocab=vocab, model_max_length=model_max_length)
    return AltaProcessor(AltaImageProcessor.from_image_size(32), tokenizer)


def make_study():
    return {"current_frontal": np.full((40, 40), 9, np.uint8)}


def test_images_and_text_come_back_in_one_batch():
    inputs = make_processor()(
        images=make_study(), text=["left pleural effusion", "right"], return_tensors="pt", padding=True
    )
    assert inputs["input_ids"].tolist() == [[2, 5, 7, 8, 3], [2, 6, 3, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert inputs["pixel_values"].shape == (1, 4, 3, 32, 32)
    assert inputs["view_mask"].tolist() == [[True, False, False, False]]
    assert set(inputs) <= set(make_processor().model_input_names)


def test_either_of_images_and_text_may_be_left_out():
    assert set(make_processor()(images=make_study())) == {"pixel_values", "view_mask"}
    assert set(make_processor()(text="left", return_tensors="pt")) == {"input_ids", "attention_mask", "token_type_ids"}


def test_neither_images_nor_text_is_an_error():
    with pytest.raises(ValueError, match="Either `images` or `text` must be passed"):
        make_processor()()


def test_long_text_is_truncated_to_the_limit_of_the_tokenizer():
    inputs = make_processor(model_max_length=8)(text=["left " * 20, "right " * 6], return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 8)
    assert inputs["input_ids"][:, -1].tolist() == [3, 3]


@pytest.mark.parametrize("off", [{"truncation": False}, {"text_kwargs": {"truncation": False}}])
def test_long_text_without_truncation_is_an_error_that_names_it(off):
    processor = make_processor(model_max_length=8)
    assert processor(text=["left " * 6], **off)["input_ids"][0] == [2, *[5] * 6, 3]
    with pytest.raises(ValueError, match=r"`text`\[1\] must have at most 8 tokens .* got 9"):
        processor(text=["left", "left " * 7], padding=True, **off)


def test_max_length_over_the_limit_is_an_error():
    with pytest.raises(ValueError, match="`max_length` must be at most 8 tokens, got 9"):
        make_processor(model_max_length=8)(text="left", padding="max_length", max_length=9)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ([], ValueError, "`text` must hold at least one string"),
        (3, TypeError, "`text` must be a string or a list of strings, got int"),
        (["left", None], TypeError, r"`text`\[1\] must be a string, got NoneType"),
    ],
)
def test_text_of_a_wrong_type_is_an_error(text, kind, message):
    with pytest.raises(kind, match=message):
        make_processor()(text=text)


def test_the_length_that_a_tokenizer_was_saved_with_is_no_limit_of_later_texts(tmp_path):
    text = "no pneumonia left effusion"
    for length in (3, 100):  # its `tokenizer.json` keeps that of the last call
        processor = make_processor()
        expected = processor(text=text)["input_ids"]
        processor.tokenizer(text, truncation=True, max_length=length)
        processor.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert loaded.tokenizer.init_kwargs["max_length"] == length
        assert loaded(text=text)["input_ids"] == expected


def test_decoding_is_that_of_the_tokenizer():
    processor = make_processor()
    assert processor.decode([2, 5, 8, 3], skip_special_tokens=True) == "left effusion"
    assert processor.batch_decode([[5], [8]]) == ["left", "effusion"]


def test_options_reach_the_image_processor():
    inputs = make_processor()(images=make_study(), do_normalize=False, do_rescale=False)
    assert (np.stack(inputs["pixel_values"])[0, 0] == 9).all()


@pytest.mark.parametrize("loader", [AltaProcessor, AutoProcessor])
def test_saved_processor_loads_and_gives_the_same_inputs(tmp_path, loader):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is AltaProcessor and loaded.tokenizer.model_max_length == 8
    arguments = {"images": make_study(), "text": ["left effusion " * 9], "return_tensors": "pt"}
    expected, inputs = processor(**arguments), loaded(**arguments)
    assert set(inputs) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(inputs[name], tensor)
