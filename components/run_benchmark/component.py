"""Edits the held-out samples with the trained model, its controls and the champion."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def run_benchmark(config: str, model: dsl.Input[dsl.Model], edits: dsl.Output[dsl.Artifact]):
    """Writes where the edits lie."""
    import json

    from kiwi.configuration import RunConfiguration
    from kiwi.registry.contest import benchmark_with_champion
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "run_benchmark") as task:
        result = benchmark_with_champion(configuration, task)
    with open(edits.path, "w") as file:
        json.dump(result, file)
