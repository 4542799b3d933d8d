"""The arms of the experiment: each is the method with one thing changed."""

from dataclasses import dataclass, field


__all__ = ["ARMS", "COVID_ARMS", "FAMILIES", "Arm"]


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
    """

    name: str
    title: str
    trains: str = "adapters"
    is_pretrained: bool = True
    only_frontal: bool = False
    contrast_only: bool = False
    settings: dict[str, float] = field(default_factory=dict)

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
    )
}
COVID_ARMS = ("adapters", "heads", "full", "clip", "frontal", "random")
# Family → the arm that the sweep of learning rates trains.
FAMILIES = {"adapters": "adapters", "heads": "heads", "all": "full", "clip": "clip"}
