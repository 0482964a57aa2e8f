"""Pipelines, one a file."""

from .conversation import AnswerDone, ImageDone, ImageStep, TextPiece
from .picture_pipeline import ShowoImagePipelineOutput
from .pipeline_showo_any_to_any import Conversation, ShowoAnyToAnyPipeline, ShowoAnyToAnyPipelineOutput
from .pipeline_showo_mmu import ShowoMMUPipeline, ShowoMMUPipelineOutput, ShowoScoreOutput
from .pipeline_showo_t2i import ShowoT2IPipeline


__all__ = [
    "AnswerDone",
    "Conversation",
    "ImageDone",
    "ImageStep",
    "ShowoAnyToAnyPipeline",
    "ShowoAnyToAnyPipelineOutput",
    "ShowoImagePipelineOutput",
    "ShowoMMUPipeline",
    "ShowoMMUPipelineOutput",
    "ShowoScoreOutput",
    "ShowoT2IPipeline",
    "TextPiece",
]
