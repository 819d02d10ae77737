"""The learning rate over a run."""

import math


def learning_rate_at(step: int, total_steps: int, *, peak: float, final: float, warmup_steps: int) -> float:
    """Linear warm-up to `peak`, then cosine to `final`, which is reached at `total_steps`. Steps count from 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
