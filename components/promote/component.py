"""Moves the alias `champion` to the challenger and keeps the former one as `previous`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(config: str):
    """Changes aliases and appends to the history of promotions."""
    from kiwi.configuration import RunConfiguration
    from kiwi.registry import promote_candidate as apply
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "promote") as task:
        apply(configuration, task)
