"""The shape of the tiny model's attention."""

HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64
