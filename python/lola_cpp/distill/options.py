"""What a distillation is made from, and how long and how fast it trains."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lola_cpp._core import UsageError
from lola_cpp.convert.adapter import Settings


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
    lora_cache: int = 0  # pairs of the sparse cache during LoRA
    lora_window: int | None = None  # window during LoRA; None: that of the settings
    checkpoint_every: int = 100
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("length", "batch", "micro_batch", "lora_rank", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: found {getattr(self, name)}, wanted 1 or more")
        for name in ("transfer_steps", "lora_steps", "lora_cache"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}: found {getattr(self, name)}, wanted 0 or more")
        if self.batch % self.micro_batch:
            raise UsageError(f"micro_batch: found {self.micro_batch}, wanted a divisor of the batch, {self.batch}")
        settings, window = self.settings, self.lora_window
        if window is not None and (window < 1 or window % settings.chunk_size):
            raise UsageError(f"lora_window: found {window}, wanted a multiple of the chunk_size, {settings.chunk_size}")
        if self.lora_cache and (settings.policy not in ("self_recall", "weighted_recall") or settings.chunk_size == 1):
            raise UsageError(
                f"lora_cache: found policy {settings.policy} and chunk_size {settings.chunk_size}, "
                "wanted self_recall or weighted_recall, and chunks of several tokens"
            )

    def identity(self, stage: str, digest: str) -> dict[str, Any]:
        """What a checkpoint of the stage has to agree with before it goes on."""
        names = {
            "transfer": ("length", "batch", "transfer_steps", "transfer_rate", "seed"),
            "lora": ("length", "batch", "lora_steps", "lora_rate", "lora_rank", "lora_cache", "lora_window", "seed"),
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
