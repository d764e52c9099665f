"""Compares the newest dataset version with the one that the champion was trained on."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare_dataset(config: str) -> str:
    """Returns "train" once for each new commit, else "rest"."""
    from kiwi.cluster.retraining import decide
    from kiwi.configuration import RunConfiguration
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "compare_dataset") as task:
        return decide(configuration, task)
