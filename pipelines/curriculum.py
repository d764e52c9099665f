"""A dataset version to a trained editor: the paper's stages (section 4.2), one component used once for each."""

import os

from kfp import dsl

from components.cache_latents.component import cache_latents
from components.train_stage.component import train_stage
from pipelines.tasks import step

# The graph is fixed when it is compiled: whoever compiles for a preset names its stages here.
STAGES = os.environ.get("KIWI_STAGES", "stage1,stage2,stage3").split(",")


def title(stage: str) -> str:
    """ "stage2a" as people read it."""
    return f"Train stage {stage.removeprefix('stage')}"


@dsl.pipeline(name="curriculum", description="Trains the editor: alignment, instruction editing, reference editing.")
def curriculum(config: str, dataset: dsl.Input[dsl.Dataset]) -> dsl.Model:
    cached = step(cache_latents(config=config, dataset=dataset), "Cache latents")
    latents = cached.outputs["latents"]

    trained = step(train_stage(config=config, stage=STAGES[0], latents=latents), title(STAGES[0]))
    for stage in STAGES[1:]:
        previous = trained.outputs["model"]
        trained = step(train_stage(config=config, stage=stage, latents=latents, previous=previous), title(stage))
    return trained.outputs["model"]
