"""Embedding of studies and texts: order, batches, normalisation, modes, ignored columns."""

import pytest
import torch

from eval.embeddings import embed_studies, embed_texts
from tests.fake_model import FakeModel, FakeProcessor


STUDIES = [
    {"study_id": "a", "current_frontal": [3.0, 4.0], "current_lateral": None, "report": "x"},
    {"study_id": "b", "current_frontal": [0.0, 2.0]},
    {"study_id": "c", "current_frontal": [-1.0, 0.0]},
]


def test_study_embeddings_are_unit_length_in_the_order_given():
    embeds = embed_studies(FakeModel(), FakeProcessor(), STUDIES, batch_size=2)
    torch.testing.assert_close(embeds, torch.tensor([[0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]]))
    assert embeds.dtype == torch.float32 and not embeds.requires_grad


def test_text_embeddings_are_unit_length_in_the_order_given():
    embeds = embed_texts(FakeModel(), FakeProcessor(), ["3 4", "0 2"], batch_size=1)
    torch.testing.assert_close(embeds, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batch_size_changes_the_batches_and_not_the_embeddings(batch_size):
    processor = FakeProcessor()
    embeds = embed_studies(FakeModel(), processor, iter(STUDIES), batch_size)
    torch.testing.assert_close(embeds, embed_studies(FakeModel(), FakeProcessor(), STUDIES, 1))
    assert max(processor.batch_sizes) == min(batch_size, 3) and sum(processor.batch_sizes) == 3


def test_only_the_views_that_were_taken_reach_the_processor():
    processor = FakeProcessor()
    embed_studies(FakeModel(), processor, STUDIES[:1])
    assert processor.seen_studies == [{"current_frontal": [3.0, 4.0]}]


def test_training_mode_of_every_module_is_restored():
    model = FakeModel()
    model.train()
    model.projection.eval()
    embed_texts(model, FakeProcessor(), ["1 0"])
    assert (model.training, model.dropout.training, model.projection.training) == (True, True, False)


def test_training_mode_is_restored_after_an_error():
    model = FakeModel()
    with pytest.raises(ValueError):
        embed_texts(model, FakeProcessor(), ["no numbers"])
    assert model.training


def test_half_precision_model_gives_float32_embeddings():
    embeds = embed_studies(FakeModel().to(torch.bfloat16), FakeProcessor(), STUDIES)
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))


def test_no_item_and_no_batch_are_refused():
    with pytest.raises(ValueError, match="`studies` must hold at least one item"):
        embed_studies(FakeModel(), FakeProcessor(), [])
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        embed_texts(FakeModel(), FakeProcessor(), ["1 0"], batch_size=0)
