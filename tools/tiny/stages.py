"""What the teacher is trained on at what rate, and what its polish is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    window: int
    cache: int
    answers: bool  # whether recall tasks are done with it too, or plain text alone is foretold


@dataclass(frozen=True)
class Stage:
    """recall: share of the sequences that are recall tasks; lookalikes: share of these that are variables with names
    hard to tell apart; unseen: share of plain text that is of the unseen documents; the rate stays to the share
    `constant` of the time, and then falls to `last` of itself.
    """

    name: str  # of its checkpoint too
    lengths: tuple[tuple[float, dict[int, float]], ...]  # from a share of the time on, how often each is drawn
    recall: float
    lookalikes: float
    unseen: float
    rate: float
    warm_up: int  # steps
    constant: float
    last: float
    memories: tuple[Memory, ...] = ()  # of these a step draws one, and uses it beside attention to everything

    def rate_at(self, step: int, progress: float) -> float:
        falling = 1.0 - (1 - self.last) * (progress - self.constant) / (1 - self.constant)
        return self.rate * min(1.0, (step + 1) / self.warm_up) * min(1.0, falling)


TEACHER = Stage(
    "teacher",
    (
        (0.00, {512: 1.0}),
        (0.12, {512: 0.4, 2048: 0.6}),
        (0.25, {512: 0.2, 2048: 0.4, 4096: 0.4}),
        (0.38, {512: 0.2, 2048: 0.3, 8192: 0.5}),
        (0.55, {1024: 0.3, 4096: 0.2, 8192: 0.1, 16384: 0.4}),
        (0.75, {512: 0.15, 2048: 0.15, 8192: 0.15, 16384: 0.1, 32768: 0.45}),
    ),
    recall=0.5,
    lookalikes=0.0,
    unseen=0.0,
    rate=2e-3,
    warm_up=150,
    constant=0.65,
    last=0.03,
)
# At a low rate from the trained teacher on. Its text stays what it was: see _polished_losses.
POLISH = Stage(
    "polish",
    ((0.0, {1024: 0.1, 4096: 0.2, 8192: 0.2, 16384: 0.15, 32768: 0.35}),),
    recall=0.7,
    lookalikes=0.5,
    unseen=0.5,
    rate=4e-4,
    warm_up=30,
    constant=0.0,
    last=0.0,
    memories=(Memory(64, 64, True), Memory(256, 256, False), Memory(448, 64, False)),
)
