"""Sizes, steps and learning rates of the experiment, and of the same in seconds for a test."""

from dataclasses import dataclass, field, replace
from typing import Any


__all__ = ["QUICK", "STANDARD", "Settings"]


TEXT_SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT_TRAINING = {"epochs": 11, "batch_size": 64, "learning_rate": 3e-3}
MODEL = {
    "vision_config": {
        "image_size": 48,
        "patch_size": 12,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    "text_config": {
        **TEXT_SIZES,
        "intermediate_size": 192,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "decoder_hidden_size": 48,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_patch_size": 6,
    "mask_ratio": 0.25,
    "report_mask_ratio": 0.75,
    "max_report_length": 64,
}


@dataclass(frozen=True)
class Settings:
    """
    One experiment.

    Args:
        num_studies (`int`): of PhantomCXR, before the split 80 / 10 / 10 by patient.
        num_candidates (`int`): unseen studies and reports among which the right one is sought.
        num_groups (`int`): so many groups of candidates, of which the recalls are means.
        seeds (`tuple[int, ...]`): each makes its own studies, text encoder, vision tower and runs.
        validation_seeds (`tuple[int, ...]`): those on whose validation split learning rates are chosen and reasons are
            looked for; what was decided on them is tested on `seeds`.
        image_size (`int`): side of the images in pixels, of which the phantom draws somewhat more.
        vocab_size, max_report_length (`int`): of the reports' tokens.
        text_encoder (`dict`): arguments of `pretrain_text_encoder`.
        model (`dict`): fields of `AltaConfig` for masked record modelling.
        bottleneck_ratio (`float`): of the adapters.
        alignment (`dict`): fields of `AltaConfig` for the arms. The published three quarters of masked patches are of
            196; here there are 16, and one of them holds all of a nodule. Scales that start at the published 1 / 0.07
            hold heads that start from random weights back in runs so short.
        batch_size, mrm_batch_size, mrm_steps, steps (`int`): of the two stages.
        mrm_learning_rate (`float`): of masked record modelling.
        learning_rates (`dict`): family of arms → the best rate of the sweep.
        sweep (`dict`): family of arms → the rates to try.
    """

    num_studies: int = 4000
    num_candidates: int = 150
    num_groups: int = 2
    seeds: tuple[int, ...] = (6, 7, 8)
    validation_seeds: tuple[int, ...] = (100, 101)
    image_size: int = 48
    vocab_size: int = 400
    max_report_length: int = 64
    text_encoder: dict[str, Any] = field(default_factory=lambda: dict(TEXT_SIZES, projection_size=32) | TEXT_TRAINING)
    model: dict[str, Any] = field(default_factory=lambda: dict(MODEL))
    bottleneck_ratio: float = 0.15
    alignment: dict[str, Any] = field(
        default_factory=lambda: {
            "missing_views": "skip",
            "mask_ratio": 0.125,
            "report_mask_ratio": 0.5,
            "logit_scale_init_value": 1.6,
        }
    )
    batch_size: int = 16
    mrm_batch_size: int = 48
    mrm_steps: int = 1500
    steps: int = 500
    mrm_learning_rate: float = 5e-3
    learning_rates: dict[str, float] = field(
        default_factory=lambda: {"adapters": 1e-2, "heads": 1e-2, "all": 1.5e-3, "clip": 5e-4}
    )
    sweep: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: {
            "adapters": (2.5e-3, 5e-3, 1e-2, 2e-2),
            "heads": (5e-3, 1e-2, 2e-2),
            "all": (7.5e-4, 1.5e-3, 3e-3, 6e-3),
            "clip": (2.5e-4, 5e-4, 1e-3, 2e-3),
        }
    )

    def with_longer_pretraining(self, factor: int) -> "Settings":
        """The same with `factor` times the epochs of the text encoder and the steps of masked record modelling."""
        text_encoder = {**self.text_encoder, "epochs": factor * self.text_encoder["epochs"]}
        return replace(self, text_encoder=text_encoder, mrm_steps=factor * self.mrm_steps)

    @property
    def of_preparation(self) -> dict[str, Any]:
        """Those that decide what the arms of a seed share, as JSON holds them."""
        names = ("num_studies", "image_size", "vocab_size", "max_report_length", "text_encoder", "model")
        names += ("mrm_batch_size", "mrm_steps", "mrm_learning_rate")
        return {name: getattr(self, name) for name in names}

    @property
    def target_size(self) -> int:
        """Side in pixels of the image to reconstruct."""
        return self.image_size // self.model["vision_config"]["patch_size"] * self.model["decoder_patch_size"]


STANDARD = Settings()
QUICK = Settings(
    num_studies=200,
    num_candidates=8,
    seeds=(0, 1),
    validation_seeds=(100,),
    text_encoder={**STANDARD.text_encoder, "epochs": 1},
    mrm_steps=2,
    steps=2,
    sweep={"adapters": (1e-3, 2e-3), "heads": (1e-3,), "all": (1e-3,), "clip": (1e-3,)},
)
