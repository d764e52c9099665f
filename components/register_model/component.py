"""Registers the trained model as `challenger`, with its dataset's commit and its scores."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register_model(
    config: str, model: dsl.Input[dsl.Model], scores: dsl.Input[dsl.Metrics], version: dsl.Output[dsl.Artifact]
):
    """Writes the registered name, version and aliases."""
    import json

    from kiwi.configuration import RunConfiguration
    from kiwi.registry import register
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "register_model") as task:
        result = register(configuration, task)
    with open(version.path, "w") as file:
        json.dump(result, file)
