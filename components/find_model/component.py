"""The trained editor that the work folder holds, for pipelines that begin at the benchmark."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def find_model(config: str, model: dsl.Output[dsl.Model]):
    """Writes the last stage's result; fails with the remedy where that stage is not finished."""
    import json

    from kiwi.cluster.opening import trained_model
    from kiwi.configuration import RunConfiguration
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "find_model"):
        result = trained_model(configuration)
    with open(model.path, "w") as file:
        json.dump(result, file)
