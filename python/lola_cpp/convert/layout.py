"""What the supported base architectures look like in Hugging Face folders and in GGUF files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lola_cpp._core import FormatError

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

# Hugging Face module -> GGUF tensor, per layer.
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
MODEL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Heads:
    """Shape of the attention of one model."""

    query: int
    key_value: int
    dim: int


def permute_rows(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """q or k rows from half-split to interleaved RoPE order: row half * d/2 + i of a head goes to 2i + half.

    Args:
        values: [heads * d, ...].

    Raises:
        FormatError: the rows cannot be divided into heads with an even dimension.
    """
    if values.shape[0] % (2 * heads):
        raise FormatError(f"found {values.shape[0]} rows for {heads} heads, wanted a multiple of {2 * heads}")
    split = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)


def is_permuted(architecture: str) -> bool:
    """Whether GGUF files of this architecture store q and k rows in interleaved RoPE order."""
    return architecture == "llama"
