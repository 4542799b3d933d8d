"""Vocabulary and pretraining of a small BERT, for reports that no public text encoder covers.

    python -m processing.text_encoder --records DIR --output DIR

Both are learnt from the reports of the train split alone, as CXR-BERT's are: masked tokens teach the words, and
telling a report's two masked, shuffled forms from those of other reports teaches the class token. The output folder
holds the tokenizer and the weights in CXR-BERT's layout: what the conversion of a vision checkpoint takes.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean

import torch
from tokenizers import BertWordPieceTokenizer
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, get_linear_schedule_with_warmup, set_seed

from modeling_alta.configuration_alta import AltaConfig
from modeling_alta.losses_alta import global_contrastive_loss
from modeling_alta.modeling_alta import AltaProjectionHead
from processing.batches.report_masking import shuffle_sentences
from processing.batches.training_batch import encode_reports
from processing.records.study_records import load_study_records


SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MASK_RATIO = 0.15
CONTRAST_SCALE = 10.0  # of the cosines between forms of reports


def train_tokenizer(reports: list[str], vocab_size: int = 2000, max_length: int = 128) -> BertTokenizer:
    """Learn a lower-case WordPiece vocabulary.

    Args:
        reports (`list[str]`): texts to learn from.
        vocab_size (`int`, defaults to 2000): most entries of the vocabulary, special tokens included.
        max_length (`int`, defaults to 128): `model_max_length` of the tokenizer.

    Raises:
        `ValueError`: no text.
    """
    if not any(report.strip() for report in reports):
        raise ValueError(f"`reports` must hold text to learn a vocabulary from, got {len(reports)} without any.")
    # Accents are kept: in many languages they tell words apart.
    trainer = BertWordPieceTokenizer(lowercase=True, strip_accents=False)
    words, alphabet = _count_words(reports, trainer, vocab_size // 4)
    # The trainer numbers the "##" letters in the order of a hash map, and breaks ties by number. Listed beforehand,
    # they have fixed numbers, so that the same reports always give the same vocabulary.
    continuing = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer.train_from_iterator(
        (word for word, count in sorted(words.items()) for _ in range(count)),
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=len(alphabet),
        special_tokens=SPECIAL_TOKENS + continuing,
        show_progress=False,
    )
    return BertTokenizer(
        vocab=trainer.get_vocab(), do_lower_case=True, strip_accents=False, model_max_length=max_length
    )


class ReportEncoder(BertForMaskedLM):
    """A masked-language BERT with CXR-BERT's projection of the class token."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.cls_projection_head = AltaProjectionHead(
            config.hidden_size, AltaConfig(projection_dim=config.projection_size)
        )
        self.post_init()

    def forward(self, masked_input_ids, attention_mask, labels) -> torch.Tensor:
        """The loss of a batch whose second half holds other forms of the reports of its first half, in their order."""
        hidden_states = self.bert(masked_input_ids, attention_mask=attention_mask).last_hidden_state
        is_masked = labels != -100
        token_loss = torch.nn.functional.cross_entropy(self.cls(hidden_states[is_masked]), labels[is_masked])
        embeds = torch.nn.functional.normalize(self.cls_projection_head(hidden_states[:, 0]), dim=-1)
        first, second = embeds.chunk(2)
        return token_loss + global_contrastive_loss(first, second, torch.tensor(CONTRAST_SCALE))


def pretrain_text_encoder(
    reports: list[str],
    tokenizer: BertTokenizer,
    hidden_size: int = 64,
    num_hidden_layers: int = 2,
    num_attention_heads: int = 4,
    projection_size: int = 128,
    epochs: int = 20,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[ReportEncoder, list[float]]:
    """Pretrain a BERT from random weights to fill in 15 % of the tokens of each report, and to know a report again.

    Args:
        reports (`list[str]`): texts to learn from.
        tokenizer (`BertTokenizer`): the vocabulary; its `model_max_length` is the number of positions.
        hidden_size, num_hidden_layers, num_attention_heads (`int`): sizes of the encoder; the MLP is 4 times as wide.
        projection_size (`int`): size of the projected class token.
        epochs, batch_size (`int`), learning_rate (`float`): AdamW, warm-up over a tenth of the steps, linear decay.
        dropout (`float`, defaults to 0): of hidden states and attention, in later training too. With BERT's 0.1 an
            encoder this small hardly learns from the context of a masked token.
        seed (`int`, defaults to 0): decides the initial weights, the order and the masks.

    Returns:
        `tuple[ReportEncoder, list[float]]`: the model in eval mode, and its loss at every step.
    """
    set_seed(seed)
    model = _build_model(
        tokenizer, hidden_size, num_hidden_layers, num_attention_heads, projection_size, dropout
    ).train()
    loader = _build_loader(reports, tokenizer, batch_size, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    num_steps = epochs * len(loader)
    scheduler = get_linear_schedule_with_warmup(optimizer, num_steps // 10, num_steps)
    losses = []
    with tqdm(total=num_steps, desc="Text encoder", unit="step") as progress:
        for _ in range(epochs):
            for batch in loader:
                losses.append(_train_step(model, batch, optimizer, scheduler))
                progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                progress.update()
    return model.cpu().eval(), losses


def main(args: argparse.Namespace) -> None:
    records = load_study_records(args.records, "train").select_columns(["report"])
    reports = [report for report in records["report"] if report and report.strip()]
    tokenizer = train_tokenizer(reports, args.vocab_size, args.max_length)
    model, losses = pretrain_text_encoder(
        reports,
        tokenizer,
        args.hidden_size,
        args.num_hidden_layers,
        args.num_attention_heads,
        args.projection_size,
        args.epochs,
        args.batch_size,
        args.learning_rate,
        args.dropout,
        args.seed,
    )
    tokenizer.save_pretrained(args.output)
    model.save_pretrained(args.output)
    tenth = max(1, len(losses) // 10)
    print(
        f"Loss {fmean(losses[:tenth]):.3f} over the first tenth of {len(losses)} steps, "
        f"{fmean(losses[-tenth:]):.3f} over the last; {len(reports)} reports, {len(tokenizer)} tokens: {args.output}"
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; every option is an argument of `train_tokenizer` or `pretrain_text_encoder`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", required=True, help="folder of study records, or their id on the Hub")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tokenizer and the model")
    for name, default in {
        "vocab-size": 2000,
        "max-length": 128,
        "hidden-size": 64,
        "num-hidden-layers": 2,
        "num-attention-heads": 4,
        "projection-size": 128,
        "epochs": 20,
        "batch-size": 16,
        "learning-rate": 1e-3,
        "dropout": 0.0,
        "seed": 0,
    }.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name in ("max_length", "hidden_size", "num_hidden_layers", "num_attention_heads", "epochs", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"`--{name.replace('_', '-')}` must be at least 1, got {getattr(args, name)}.")
    return args


def _count_words(reports: list[str], trainer: BertWordPieceTokenizer, max_letters: int) -> tuple[Counter, set[str]]:
    """Words made of the most frequent letters alone, with their counts, and these letters."""
    words = Counter()
    for report in reports:
        pieces = trainer.pre_tokenizer.pre_tokenize_str(trainer.normalizer.normalize_str(report))
        words.update(word for word, _ in pieces)
    letters = Counter()
    for word, count in words.items():
        letters.update({letter: count * word.count(letter) for letter in set(word)})
    alphabet = set(sorted(letters, key=lambda letter: (-letters[letter], letter))[:max_letters])
    return Counter({word: count for word, count in words.items() if alphabet.issuperset(word)}), alphabet


def _build_model(
    tokenizer: BertTokenizer, hidden_size: int, num_layers: int, num_heads: int, projection_size: int, dropout: float
) -> ReportEncoder:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        projection_size=projection_size,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        # BERT's 0.02 is for its 768; a small encoder would give every report nearly the same class token for long.
        initializer_range=0.02 * (768 / hidden_size) ** 0.5,
    )
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return ReportEncoder(config).to(device)


def _build_loader(reports: list[str], tokenizer: BertTokenizer, batch_size: int, seed: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)

    def collate(batch: list[str]) -> dict[str, torch.Tensor]:
        forms = [shuffle_sentences(report, generator) for report in batch * 2]
        seeds = torch.randint(2**62, (len(forms),), generator=generator).tolist()
        samples = [{"report": report, "mask_seed": seed} for report, seed in zip(forms, seeds, strict=True)]
        return encode_reports(tokenizer, samples, tokenizer.model_max_length, MASK_RATIO)

    return DataLoader(reports, batch_size=batch_size, shuffle=True, generator=generator, collate_fn=collate)


def _train_step(model: ReportEncoder, batch: dict[str, torch.Tensor], optimizer, scheduler) -> float:
    batch = {name: batch[name].to(model.device) for name in ("masked_input_ids", "attention_mask", "labels")}
    loss = model(**batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss.item()


__all__ = ["MASK_RATIO", "SPECIAL_TOKENS", "ReportEncoder", "parse_args", "pretrain_text_encoder", "train_tokenizer"]


if __name__ == "__main__":
    try:
        main(parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
