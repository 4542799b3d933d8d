"""The arms of the experiments: each is the method with one thing changed."""

from dataclasses import dataclass, field


__all__ = ["ARMS", "COVID_ARMS", "FAMILIES", "LONGER_ARMS", "PHANTOM_ARMS", "REASON_ARMS", "Arm"]


@dataclass(frozen=True)
class Arm:
    """
    One way to train.

    Args:
        name (`str`): in the JSON and on the command line.
        title (`str`): in the tables.
        trains (`str`): `"adapters"` over a frozen base, `"heads"` alone, or `"all"` weights.
        is_pretrained (`bool`): the vision tower starts from masked record modelling, else from random weights.
        only_frontal (`bool`): the current frontal alone, in training and evaluation.
        contrast_only (`bool`): a CLIP: whole images, the global contrast alone.
        settings (`dict`): fields of `AltaConfig` in place of the method's.
        bottleneck_ratio (`float`, *optional*): of the adapters, in place of the experiment's.
        opens (`tuple[str, ...]`): towers whose weights train beside the adapters, at the rate of full fine-tuning.
        slow_heads (`bool`): what lies outside the towers, heads and decoders, trains at that rate too.
        learning_rate (`float`, *optional*): in place of the one the sweep chose for the family.
        num_studies (`int`, *optional*): of those that train, the first alone.
    """

    name: str
    title: str
    trains: str = "adapters"
    is_pretrained: bool = True
    only_frontal: bool = False
    contrast_only: bool = False
    settings: dict[str, float] = field(default_factory=dict)
    bottleneck_ratio: float | None = None
    opens: tuple[str, ...] = ()
    slow_heads: bool = False
    learning_rate: float | None = None
    num_studies: int | None = None

    @property
    def family(self) -> str:
        """Arms of a family share the learning rate that the sweep chose."""
        return "clip" if self.contrast_only else self.trains


ARMS = {
    arm.name: arm
    for arm in (
        Arm("adapters", "adapters: the method"),
        Arm("heads", "heads alone over the frozen tower", trains="heads"),
        Arm("full", "full fine-tuning", trains="all"),
        Arm("clip", "CLIP style, random vision tower", trains="all", is_pretrained=False, contrast_only=True),
        Arm("frontal", "adapters, current frontal alone", only_frontal=True),
        Arm("random", "adapters, random frozen tower", is_pretrained=False),
        Arm("no_global", "adapters without global contrast", settings={"global_contrastive_weight": 0.0}),
        Arm("no_local", "adapters without local contrast", settings={"local_contrastive_weight": 0.0}),
        Arm("no_image", "adapters without image loss", settings={"image_reconstruction_weight": 0.0}),
        Arm("no_report", "adapters without report loss", settings={"masked_report_weight": 0.0}),
        Arm("slow_heads", "adapters, heads at the rate of full fine-tuning", slow_heads=True),
        Arm(
            "wide",
            "the same, adapters as wide as the towers",
            slow_heads=True,
            bottleneck_ratio=1.0,
            learning_rate=3e-3,
        ),
        Arm("open_vision", "the same, vision tower not frozen", slow_heads=True, opens=("vision_model",)),
        Arm("open_text", "the same, text tower not frozen", slow_heads=True, opens=("text_model",)),
        Arm("open_both", "the same, neither tower frozen", slow_heads=True, opens=("vision_model", "text_model")),
        Arm("few_adapters", "adapters, 300 studies", num_studies=300),
        Arm("few_full", "full fine-tuning, 300 studies", trains="all", num_studies=300),
    )
}
COVID_ARMS = ("adapters", "heads", "full", "clip", "frontal", "random")
PHANTOM_ARMS = (*COVID_ARMS, "no_global", "no_local", "no_image", "no_report")
# What might keep adapters from full fine-tuning: rates, room, a frozen tower, or that nothing is learnt by heart.
OPEN_ARMS = ("open_vision", "open_text", "open_both")
REASON_ARMS = ("adapters", "full", "slow_heads", "wide", *OPEN_ARMS, "few_adapters", "few_full")
# Where the towers were pretrained for longer.
LONGER_ARMS = ("adapters", "full", "slow_heads", "open_both")
# Family → the arm that the sweep of learning rates trains.
FAMILIES = {"adapters": "adapters", "heads": "heads", "all": "full", "clip": "clip"}
