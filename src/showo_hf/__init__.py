"""Show-o models that understand and generate images, as standard Hugging Face classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .models.configuration_diffusion_decoder import ShowoDiffusionDecoderConfig
from .models.configuration_showo import ShowoConfig
from .models.configuration_showo_lfq import ShowoLFQTokenizerConfig
from .models.configuration_showo_vq import ShowoVQTokenizerConfig
from .models.modeling_diffusion_decoder import ShowoDiffusionDecoder
from .models.modeling_showo import ShowoForCausalLM
from .models.modeling_showo_lfq import ShowoLFQTokenizer
from .models.modeling_showo_vq import ShowoVQTokenizer
from .processing.images import load_image
from .processing.processing_showo import ShowoProcessor
from .schedulers import (
    EntropyBoundScheduler,
    HaltonScheduler,
    MaskAndReplaceScheduler,
    MaskGITScheduler,
    RemaskingScheduler,
)
from .utils.embedded_model import EMBEDDED_MODEL


AutoConfig.register("showo", ShowoConfig, exist_ok=True)
AutoConfig.register("showo_diffusion_decoder", ShowoDiffusionDecoderConfig, exist_ok=True)
AutoConfig.register("showo_lfq", ShowoLFQTokenizerConfig, exist_ok=True)
AutoConfig.register("showo_vq", ShowoVQTokenizerConfig, exist_ok=True)
AutoModel.register(ShowoDiffusionDecoderConfig, ShowoDiffusionDecoder, exist_ok=True)
AutoModel.register(ShowoLFQTokenizerConfig, ShowoLFQTokenizer, exist_ok=True)
AutoModel.register(ShowoVQTokenizerConfig, ShowoVQTokenizer, exist_ok=True)
AutoModelForCausalLM.register(ShowoConfig, ShowoForCausalLM, exist_ok=True)
AutoModelForImageTextToText.register(ShowoConfig, ShowoForCausalLM, exist_ok=True)
AutoModelForMultimodalLM.register(ShowoConfig, ShowoForCausalLM, exist_ok=True)
AutoProcessor.register(ShowoConfig, ShowoProcessor, exist_ok=True)

# After the registrations: a saved pipeline's components are loaded through them.
from showo_hf.pipelines import (  # noqa: E402
    AnswerDone,
    Conversation,
    ImageDone,
    ImageStep,
    RegionalPrompt,
    ShowoAnyToAnyPipeline,
    ShowoAnyToAnyPipelineOutput,
    ShowoExtrapolatePipeline,
    ShowoImagePipelineOutput,
    ShowoImg2ImgPipeline,
    ShowoInpaintPipeline,
    ShowoMMUPipeline,
    ShowoMMUPipelineOutput,
    ShowoScoreOutput,
    ShowoT2IPipeline,
    TextPiece,
)


__version__ = "0.1.0"

__all__ = [
    "EMBEDDED_MODEL",
    "AnswerDone",
    "Conversation",
    "EntropyBoundScheduler",
    "HaltonScheduler",
    "ImageDone",
    "ImageStep",
    "MaskAndReplaceScheduler",
    "MaskGITScheduler",
    "RegionalPrompt",
    "RemaskingScheduler",
    "ShowoAnyToAnyPipeline",
    "ShowoAnyToAnyPipelineOutput",
    "ShowoConfig",
    "ShowoDiffusionDecoder",
    "ShowoDiffusionDecoderConfig",
    "ShowoExtrapolatePipeline",
    "ShowoForCausalLM",
    "ShowoLFQTokenizer",
    "ShowoLFQTokenizerConfig",
    "ShowoMMUPipeline",
    "ShowoMMUPipelineOutput",
    "ShowoProcessor",
    "ShowoScoreOutput",
    "ShowoT2IPipeline",
    "ShowoVQTokenizer",
    "ShowoVQTokenizerConfig",
    "ShowoImagePipelineOutput",
    "ShowoImg2ImgPipeline",
    "ShowoInpaintPipeline",
    "TextPiece",
    "load_image",
]
