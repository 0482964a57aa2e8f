"""Pipelines, one a file."""

from .pipeline_showo_t2i import ShowoT2IPipeline, ShowoT2IPipelineOutput


__all__ = ["ShowoT2IPipeline", "ShowoT2IPipelineOutput"]
