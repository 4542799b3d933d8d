"""ALTA for transformers and PEFT. Importing this package registers its classes with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .classification_alta import AltaForImageClassification
from .configuration_alta import VIEW_NAMES, AltaConfig, AltaVisionConfig
from .fold_alta import fold_adapters
from .image_processing_alta import AltaImageProcessor
from .modeling_alta import AltaForPreTraining, AltaForPreTrainingOutput, AltaModel, AltaOutput
from .modeling_mrm import AltaForMaskedRecordModeling
from .pipeline_alta import AltaStudyPipeline
from .processing_alta import AltaProcessor
from .tuner_alta import AltaAdapterConfig
from .vision_alta import AltaVisionModel


AutoConfig.register("alta", AltaConfig)
AutoModel.register(AltaConfig, AltaModel)
AutoModelForImageClassification.register(AltaConfig, AltaForImageClassification)
AutoModelForPreTraining.register(AltaConfig, AltaForPreTraining)
AutoModelForZeroShotImageClassification.register(AltaConfig, AltaModel)
AutoProcessor.register(AltaConfig, AltaProcessor)
AutoImageProcessor.register(AltaConfig, image_processor_classes={"torchvision": AltaImageProcessor})
PIPELINE_REGISTRY.register_pipeline(
    "alta-study", AltaStudyPipeline, pt_model=AutoModelForZeroShotImageClassification, type="multimodal"
)

__version__ = "0.1.0"

__all__ = [
    "VIEW_NAMES",
    "AltaAdapterConfig",
    "AltaConfig",
    "AltaForImageClassification",
    "AltaForMaskedRecordModeling",
    "AltaForPreTraining",
    "AltaForPreTrainingOutput",
    "AltaImageProcessor",
    "AltaModel",
    "AltaOutput",
    "AltaProcessor",
    "AltaStudyPipeline",
    "AltaVisionConfig",
    "AltaVisionModel",
    "fold_adapters",
]
