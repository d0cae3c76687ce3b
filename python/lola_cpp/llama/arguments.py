"""Arguments of llama-cpp-python that mean nothing here: accepted, with a warning where they are not at default."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from .._core import UnsupportedError

RANDOM_SEED = 0xFFFFFFFF

# Of the constructor: name -> default. None of them changes what is computed here.
LOADING: dict[str, Any] = {
    "split_mode": 1,
    "main_gpu": 0,
    "tensor_split": None,
    "use_mmap": True,
    "use_mlock": False,
    "kv_overrides": None,
    "n_batch": 512,
    "n_ubatch": 512,
    "n_threads_batch": None,
    "rope_scaling_type": -1,
    "attention_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": 1.0,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_orig_ctx": 0,
    "offload_kqv": True,
    "flash_attn": False,
    "op_offload": None,
    "swa_full": None,
    "no_perf": False,
    "lora_base": None,
    "lora_scale": 1.0,
    "numa": False,
    "type_k": None,
    "type_v": None,
    "spm_infill": False,
    # of earlier versions
    "n_parts": -1,
    "f16_kv": True,
    "low_vram": False,
    "mul_mat_q": True,
    "n_gqa": None,
    "rms_norm_eps": None,
}
_HARMLESS = frozenset({"n_batch", "n_ubatch", "n_threads_batch", "use_mmap", "flash_attn", "f16_kv", "offload_kqv"})

# Of the constructor: what cannot be ignored when it is asked for.
UNSUPPORTED: dict[str, Any] = {
    "vocab_only": False,
    "chat_handler": None,
    "draft_model": None,
    "tokenizer": None,
}

# Of generation: name -> default.
SAMPLING: dict[str, Any] = {
    "typical_p": 1.0,
    "tfs_z": 1.0,
    "mirostat_mode": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "penalize_nl": True,
}


def check_loading(given: Mapping[str, Any]) -> None:
    """TypeError for an unknown name, UnsupportedError for what cannot be ignored; warns of what has no effect."""
    for name, value in given.items():
        if name in UNSUPPORTED:
            if value != UNSUPPORTED[name] and value is not None:
                raise UnsupportedError(f"Llama: {name}: found {value!r}; lola_cpp has no such thing")
        elif name not in LOADING:
            raise TypeError(f"Llama: unexpected keyword argument {name!r}")
        elif value != LOADING[name] and name not in _HARMLESS:
            warn_no_effect(name, value)


def check_sampling(given: Mapping[str, Any]) -> None:
    """TypeError for an unknown name; warns of samplers that do not exist here."""
    for name, value in given.items():
        if name not in SAMPLING:
            raise TypeError(f"Llama: unexpected keyword argument {name!r}")
        # The parameters of a sampler that is off are of no interest.
        if value != SAMPLING[name] and name not in ("mirostat_tau", "mirostat_eta"):
            warn_no_effect(name, value)


def warn_no_effect(name: str, value: Any, why: str = "") -> None:
    reason = f" ({why})" if why else ""
    warnings.warn(f"Llama: {name} = {value!r} has no effect in lola_cpp{reason}", UserWarning, stacklevel=4)
