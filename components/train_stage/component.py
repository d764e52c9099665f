"""Trains one stage of the curriculum, from the previous stage's checkpoint where there is one."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_stage(
    config: str,
    stage: str,
    latents: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    previous: dsl.Input[dsl.Model] = None,
):
    """Writes steps, losses, speed and the checkpoint's folder; the stage names its place in the curriculum."""
    import json

    from kiwi.cluster.launching import train
    from kiwi.configuration import RunConfiguration
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, f"train_{stage}") as task:
        result = train(configuration, stage, task)
    with open(model.path, "w") as file:
        json.dump(result, file)
