"""Linear-attention language models with LoLA's three memories on quantized GGUF weights.

Model      a GGUF file, with or without a LoLA adapter; immutable, shared by threads
Session    one conversation: its memories and its position
Batch      several sessions advanced in one pass over the weights
quantize   a GGUF file into a smaller one
"""

from ._core import DeviceError, FormatError, LolaError, Sampler, UnsupportedError, UsageError, __version__
from .batch import Batch
from .chat import Chat, Reply, ReplyPart
from .chat_template import ChatTemplate
from .convert.quantize import quantize
from .generation import Token
from .grammar import Constraint, Grammar
from .model import Model, ModelInfo
from .prefix_store import PrefixStore
from .scheduler import BusyError, Request, Scheduler
from .session import Session, Snapshot
from .session_pool import SessionPool
from .token_stream import TokenStream

__all__ = [
    "Batch",
    "BusyError",
    "Chat",
    "ChatTemplate",
    "Constraint",
    "DeviceError",
    "FormatError",
    "Grammar",
    "LolaError",
    "Model",
    "ModelInfo",
    "PrefixStore",
    "Reply",
    "ReplyPart",
    "Request",
    "Sampler",
    "Scheduler",
    "Session",
    "SessionPool",
    "Snapshot",
    "Token",
    "TokenStream",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "quantize",
]
