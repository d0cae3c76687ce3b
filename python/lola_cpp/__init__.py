"""Linear-attention language models with LoLA's three memories on quantized GGUF weights.

Model      a GGUF file, with or without a LoLA adapter; immutable, shared by threads
Session    one conversation: its memories and its position
Batch      several sessions advanced in one pass over the weights
quantize   a GGUF file into a smaller one
"""

from ._core import DeviceError, FormatError, LolaError, Sampler, UnsupportedError, UsageError, __version__
from .batch import Batch
from .convert.quantize import quantize
from .generation import Token
from .model import Model, ModelInfo
from .session import Session

__all__ = [
    "Batch",
    "DeviceError",
    "FormatError",
    "LolaError",
    "Model",
    "ModelInfo",
    "Sampler",
    "Session",
    "Token",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "quantize",
]
