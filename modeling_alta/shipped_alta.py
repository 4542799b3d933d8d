"""The code that a Hub repository ships: these files, flat beside its weights."""

import shutil
from pathlib import Path


SHIPPED_FILES = (
    "adapters_alta.py",
    "attention_alta.py",
    "blockwise_similarity_alta.py",
    "classification_alta.py",
    "configuration_alta.py",
    "dicom_alta.py",
    "fold_alta.py",
    "fused_similarity_alta.py",
    "image_processing_alta.py",
    "losses_alta.py",
    "modeling_alta.py",
    "pipeline_alta.py",
    "pixels_alta.py",
    "processing_alta.py",
    "radiograph_alta.py",
    "shipped_alta.py",
    "similarity_alta.py",
    "staged_alta.py",
    "text_alta.py",
    "tuner_alta.py",
    "vision_alta.py",
)


def copy_code(folder: str | Path) -> None:
    """Copy every shipped file into `folder`."""
    for name in SHIPPED_FILES:
        shutil.copyfile(Path(__file__).with_name(name), Path(folder, name))


def entry_points() -> tuple:
    """What the configs of a repository name, and what its users import.

    Loading remote code, transformers fetches the files that the text of a file imports. Through these imports all the
    shipped ones lie beside the model's, from where `copy_code` takes them.
    """
    from .classification_alta import AltaForImageClassification
    from .fold_alta import fold_adapters
    from .image_processing_alta import AltaImageProcessor
    from .pipeline_alta import AltaStudyPipeline
    from .processing_alta import AltaProcessor

    return AltaForImageClassification, AltaImageProcessor, AltaProcessor, AltaStudyPipeline, fold_adapters


__all__ = ["SHIPPED_FILES", "copy_code"]
