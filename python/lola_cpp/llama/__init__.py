"""llama-cpp-python's class `Llama`, with its call shapes, on this library.

    from lola_cpp.llama import Llama            # in place of: from llama_cpp import Llama

`install_as_llama_cpp()` makes `import llama_cpp` find this package, for code that cannot be changed.
"""

import sys

from .cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from .embedding import (
    LLAMA_POOLING_TYPE_CLS,
    LLAMA_POOLING_TYPE_LAST,
    LLAMA_POOLING_TYPE_MEAN,
    LLAMA_POOLING_TYPE_NONE,
    LLAMA_POOLING_TYPE_UNSPECIFIED,
)
from .helpers import (
    LlamaGrammar,
    LlamaState,
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from .llama import Llama

__all__ = [
    "LLAMA_POOLING_TYPE_CLS",
    "LLAMA_POOLING_TYPE_LAST",
    "LLAMA_POOLING_TYPE_MEAN",
    "LLAMA_POOLING_TYPE_NONE",
    "LLAMA_POOLING_TYPE_UNSPECIFIED",
    "BaseLlamaCache",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaGrammar",
    "LlamaRAMCache",
    "LlamaState",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "install_as_llama_cpp",
]


def install_as_llama_cpp() -> None:
    """From now on `import llama_cpp` in this process gives this package. Call it before anything imports the other."""
    sys.modules["llama_cpp"] = sys.modules[__name__]
