"""Pipelines, one per file."""

from .answers import AnswerDone, ImageDone, ImageStep, TextPiece
from .conversation import Conversation
from .pipeline_showo_any_to_any import ShowoAnyToAnyPipeline, ShowoAnyToAnyPipelineOutput
from .pipeline_showo_extrapolate import ShowoExtrapolatePipeline
from .pipeline_showo_img2img import ShowoImg2ImgPipeline
from .pipeline_showo_inpaint import ShowoInpaintPipeline
from .pipeline_showo_mmu import ShowoMMUPipeline, ShowoMMUPipelineOutput, ShowoScoreOutput
from .pipeline_showo_t2i import ShowoT2IPipeline
from .prompts import RegionalPrompt
from .showo_pipeline import ShowoImagePipelineOutput


__all__ = [
    "AnswerDone",
    "Conversation",
    "ImageDone",
    "ImageStep",
    "RegionalPrompt",
    "ShowoAnyToAnyPipeline",
    "ShowoAnyToAnyPipelineOutput",
    "ShowoExtrapolatePipeline",
    "ShowoImagePipelineOutput",
    "ShowoImg2ImgPipeline",
    "ShowoInpaintPipeline",
    "ShowoMMUPipeline",
    "ShowoMMUPipelineOutput",
    "ShowoScoreOutput",
    "ShowoT2IPipeline",
    "TextPiece",
]
