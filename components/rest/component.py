"""The other branch of retraining: there is nothing new to train on."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def rest(config: str):
    """Notes in the run's records that nothing was trained."""
    from kiwi.configuration import RunConfiguration
    from kiwi.tracking import task_run

    with task_run(RunConfiguration.parse(config), "rest") as task:
        task.note("nothing new")
