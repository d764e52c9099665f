"""A dataset version to a trained editor: the paper's three stages (section 4.2), one component used three times."""

from kfp import dsl

from components.cache_latents.component import cache_latents
from components.train_stage.component import train_stage
from pipelines.tasks import step


@dsl.pipeline(name="curriculum", description="Trains the editor: alignment, instruction editing, reference editing.")
def curriculum(config: str, dataset: dsl.Input[dsl.Dataset]) -> dsl.Model:
    cached = step(cache_latents(config=config, dataset=dataset), "Cache latents")
    latents = cached.outputs["latents"]

    first = step(train_stage(config=config, stage="stage1", latents=latents), "Train stage 1")
    second = step(
        train_stage(config=config, stage="stage2", latents=latents, previous=first.outputs["model"]), "Train stage 2"
    )
    third = step(
        train_stage(config=config, stage="stage3", latents=latents, previous=second.outputs["model"]), "Train stage 3"
    )
    return third.outputs["model"]
