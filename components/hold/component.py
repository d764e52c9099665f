"""Leaves the champion where it is and writes down why."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def hold(config: str):
    """Changes aliases and appends to the history of promotions."""
    from kiwi.configuration import RunConfiguration
    from kiwi.registry import hold_candidate as apply
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "hold") as task:
        apply(configuration, task)
