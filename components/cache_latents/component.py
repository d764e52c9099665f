"""Encodes the published dataset into latents, once for all training stages."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def cache_latents(config: str, dataset: dsl.Input[dsl.Dataset], latents: dsl.Output[dsl.Dataset]):
    """Writes where the latents lie and how many there are."""
    import json

    from kiwi.configuration import RunConfiguration
    from kiwi.tracking import task_run
    from kiwi.training import cache_latents as cache

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "cache_latents") as task:
        result = cache(configuration, task)
    with open(latents.path, "w") as file:
        json.dump(result, file)
