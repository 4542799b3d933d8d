import datasets
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from processing.batches.report_masking import shuffle_sentences
from processing.records.study_records import STUDY_FEATURES
from processing.text_encoder import main, parse_args, pretrain_text_encoder, train_tokenizer


REPORTS = [
    "Lungs are clear. No pleural effusion, no pneumothorax. Heart size is normal.",
    "Left pleural effusion of 1.5 cm. Heart size is enlarged.",
    "Right lower lobe pneumonia. No pleural effusion; no cardiomegaly.",
    "Épanchement pleural à gauche. Cœur normal.",
] * 3


def pretrain(seed=0, epochs=2):
    tokenizer = train_tokenizer(REPORTS, vocab_size=150, max_length=32)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_size": 8}
    return pretrain_text_encoder(
        REPORTS, tokenizer, **sizes, epochs=epochs, batch_size=4, learning_rate=1e-2, seed=seed
    )


def test_the_vocabulary_is_lower_case_and_begins_with_the_special_tokens():
    tokenizer = train_tokenizer(REPORTS, vocab_size=150, max_length=32)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(tokenizer) <= 150 and tokenizer.model_max_length == 32
    assert tokenizer.tokenize("No PLEURAL effusion [MASK]") == ["no", "pleural", "effusion", "[MASK]"]
    assert tokenizer.decode(tokenizer("À gauche")["input_ids"], skip_special_tokens=True) == "à gauche"


def test_the_same_reports_give_the_same_vocabulary():
    vocabularies = [train_tokenizer(REPORTS, vocab_size=100).get_vocab() for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_the_vocabulary_drops_the_rarest_letters_first():
    tokenizer = train_tokenizer(["aaa aa bb bb b c"] * 2, vocab_size=10)
    assert tokenizer.tokenize("aa bb c")[-1] == "[UNK]"
    assert "[UNK]" not in tokenizer.tokenize("aa bb")


def test_reports_without_text_are_an_error():
    with pytest.raises(ValueError, match="`reports` must hold text .* got 2 without any"):
        train_tokenizer(["", " "])


def test_pretraining_lowers_the_loss_and_repeats_with_its_seed():
    model, losses = pretrain(epochs=10)
    assert len(losses) == 30
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    again, same_losses = pretrain(epochs=10)
    assert same_losses == pytest.approx(losses, rel=1e-4)
    assert pretrain(seed=1, epochs=1)[1][0] != losses[0]
    assert not model.training


def test_pretraining_gives_every_report_a_class_token_of_its_own():
    tokenizer = train_tokenizer(REPORTS[:4], vocab_size=150, max_length=64)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, _ = pretrain_text_encoder(REPORTS[:4], tokenizer, **sizes, epochs=250, learning_rate=3e-3)
    generator = torch.Generator().manual_seed(5)
    turned = [shuffle_sentences(report, generator) for report in REPORTS[:4]]
    inputs = tokenizer(REPORTS[:4] + turned, padding=True, return_tensors="pt")
    embeds = model.cls_projection_head(model.bert(**inputs).last_hidden_state[:, 0])
    given, turned = torch.nn.functional.normalize(embeds, dim=-1).chunk(2)
    cosines = turned @ given.T
    assert cosines.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_command_writes_a_tokenizer_and_a_model_that_load(tmp_path, capsys):
    rows = [{**dict.fromkeys(STUDY_FEATURES), "study_id": str(i), "report": text} for i, text in enumerate(REPORTS)]
    records = datasets.Dataset.from_list([*rows, {**rows[0], "report": None}], features=STUDY_FEATURES)
    records.to_parquet(tmp_path / "records" / "data" / "train-00000-of-00001.parquet")
    sizes = "--vocab-size 150 --hidden-size 16 --num-hidden-layers 1 --num-attention-heads 2 --epochs 1".split()
    main(parse_args(["--records", str(tmp_path / "records"), "--output", str(tmp_path / "text"), *sizes]))
    assert "over the first tenth of 1 steps" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "text")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "text")
    assert tokenizer.model_max_length == 128 == model.config.max_position_embeddings
    assert model.config.vocab_size == len(tokenizer) and model.config.pad_token_id == 0
    logits = model(**tokenizer("No [MASK] effusion", return_tensors="pt")).logits
    assert torch.isfinite(logits).all()


def test_command_refuses_sizes_below_one(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--records", "in", "--output", "out", "--epochs", "0"])
    assert "`--epochs` must be at least 1, got 0" in capsys.readouterr().err
