"""What a distillation is made from, and how long and how fast it trains."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lola_cpp._core import UsageError
from lola_cpp.convert.adapter import Settings

TARGETS = ("text", "teacher")
_LORA = ("lora_steps", "lora_rate", "lora_rank", "lora_cache", "lora_window", "lora_target", "lora_maps")


@dataclass(frozen=True)
class Options:
    """data and folder are paths; batch counts sequences of a step, micro_batch those that are on the card at once."""

    model: Path
    data: tuple[Path, ...]
    folder: Path  # of the checkpoints and the report
    settings: Settings = field(default_factory=Settings)
    device: str = "cpu"
    dtype: str = "float32"
    weights: str = "device"
    length: int = 1024
    batch: int = 8
    micro_batch: int = 1
    transfer_steps: int = 2000
    transfer_rate: float = 1e-2
    maps: Path | None = None  # transfer.pt of another run, in place of a transfer
    lora_steps: int = 1000
    lora_rate: float = 1e-4
    lora_rank: int = 8
    # Pairs of the sparse cache and window during LoRA; micro-batches take turns with them.
    lora_cache: tuple[int, ...] = (0,)
    lora_window: tuple[int, ...] = ()  # empty: that of the settings
    lora_target: str = "text"  # what LoRA learns: the next token, or the teacher's logits
    lora_maps: bool = False  # the maps and window factors go on learning with LoRA
    replay: bool = False  # LoRA's micro-batches as CUDA graphs, for small models, whose time goes to launching kernels
    checkpoint_every: int = 100
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("length", "batch", "micro_batch", "lora_rank", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: found {getattr(self, name)}, wanted 1 or more")
        for name in ("transfer_steps", "lora_steps"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}: found {getattr(self, name)}, wanted 0 or more")
        if self.batch % self.micro_batch:
            raise UsageError(f"micro_batch: found {self.micro_batch}, wanted a divisor of the batch, {self.batch}")
        settings = self.settings
        for window in self.lora_window:
            if window < 1 or window % settings.chunk_size:
                wanted = f"wanted a multiple of the chunk_size, {settings.chunk_size}"
                raise UsageError(f"lora_window: found {window}, {wanted}")
        if not self.lora_cache or min(self.lora_cache) < 0:
            raise UsageError(f"lora_cache: found {list(self.lora_cache)}, wanted numbers from 0 on")
        if self.lora_target not in TARGETS:
            raise UsageError(f"lora_target: found {self.lora_target!r}, wanted one of {', '.join(TARGETS)}")
        if self.replay and not (self.device.startswith("cuda") and self.weights == "device"):
            raise UsageError(f"replay: found device {self.device} and weights {self.weights}, wanted cuda and device")
        scored = settings.policy in ("self_recall", "weighted_recall") and settings.chunk_size > 1
        if any(self.lora_cache) and not scored:
            raise UsageError(
                f"lora_cache: found policy {settings.policy} and chunk_size {settings.chunk_size}, "
                "wanted self_recall or weighted_recall, and chunks of several tokens"
            )

    def identity(self, stage: str, digest: str) -> dict[str, Any]:
        """What a checkpoint of the stage has to agree with before it goes on."""
        names = {
            "transfer": ("length", "batch", "transfer_steps", "transfer_rate", "seed"),
            "lora": ("length", "batch", *_LORA, "seed"),
        }[stage]
        values = {name: getattr(self, name) for name in names}
        trained = ("feature_map", "feature_dim", "skip_connection", "mixing", "affine", "window_size", "chunk_size")
        values |= {name: getattr(self.settings, name) for name in (*trained, "softmax_layers")}
        if stage == "lora":
            values["maps"] = None if self.maps is None else str(self.maps.resolve())
        return values | {"model": str(self.model.resolve()), "data": digest}


def with_rank(options: Options) -> Settings:
    """The settings that the adapter is written with."""
    return dataclasses.replace(options.settings, lora_r=options.lora_rank)


def cosine(step: int, steps: int) -> float:
    """The factor of the learning rate: a short warm-up, then down to zero."""
    warm = max(1, steps // 50)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
