"""Step caches of diffusers on the editor's transformer: steps that resemble the one before reuse what it computed.

    none         every block at every step
    first_block  FirstBlockCache: where the first block says nearly what it said, the others are not asked
    mag          MagCache: skips by the ratios of magnitudes between steps, which differ by model and are measured on
                 the first window, so a clip of one window gains nothing
    taylor       TaylorSeer: extrapolates blocks between full steps

TaylorSeer's stock choice of modules does nothing on Wan's transformer (its attention is not where the patterns
look), so the lite mode is asked for: blocks are skipped and the last projection is extrapolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from kiwi.editing.errors import EditError

StepCache = Literal["none", "first_block", "mag", "taylor"]
STEP_CACHES: tuple[StepCache, ...] = ("none", "first_block", "mag", "taylor")
FIRST_BLOCK_THRESHOLD = 0.1
MAG_THRESHOLD = 0.12
TAYLOR_INTERVAL = 3
_CONTEXT = "edit"
_MAG_HOOK = "mag_cache_leader_block_hook"


class StepCaching:
    """One choice of cache for one model; `mag` learns its ratios on the first sampling."""

    def __init__(self, kind: StepCache) -> None:
        if kind not in STEP_CACHES:
            raise EditError(f"no step cache {kind!r}", f"step caches: {', '.join(STEP_CACHES)}")
        self.kind = kind
        self._ratios: list[float] | None = None

    @contextmanager
    def on(self, transformer: Any, steps: int) -> Iterator[None]:
        """Caches during one sampling of `steps` steps, and leaves the transformer as it was."""
        if self.kind == "none":
            yield
            return
        if len(transformer.blocks) < 2:
            raise EditError("a transformer of one block has nothing to cache", "use --step-cache none")
        calibrating = self.kind == "mag" and (self._ratios is None or len(self._ratios) != steps)
        transformer.enable_cache(self._configuration(steps, calibrating))
        try:
            with transformer.cache_context(_CONTEXT):
                yield
                if calibrating:
                    self._ratios = _measured_ratios(transformer)
        finally:
            transformer.disable_cache()

    def _configuration(self, steps: int, calibrating: bool) -> Any:
        from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

        if self.kind == "first_block":
            return FirstBlockCacheConfig(threshold=FIRST_BLOCK_THRESHOLD)
        if self.kind == "taylor":
            return TaylorSeerCacheConfig(
                cache_interval=TAYLOR_INTERVAL, use_lite_mode=True, taylor_factors_dtype=torch.float32
            )
        if calibrating:  # one step more than there are: at the last the hook prints and forgets
            return MagCacheConfig(calibrate=True, num_inference_steps=steps + 1)
        return MagCacheConfig(mag_ratios=self._ratios, num_inference_steps=steps, threshold=MAG_THRESHOLD)


def _measured_ratios(transformer: Any) -> list[float]:
    hook = transformer.blocks[0]._diffusers_hook.get_hook(_MAG_HOOK)
    return list(hook.state_manager.get_state().calibration_ratios)
