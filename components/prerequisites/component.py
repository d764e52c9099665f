"""The first task on a cluster: looks for all that the run needs, and fails with one list of what is missing."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prerequisites(config: str):
    """Checks services, secrets, quotas, model access and free space; then opens the run in its work folder."""
    from kiwi.cluster.opening import open_run
    from kiwi.cluster.prerequisites import check
    from kiwi.configuration import RunConfiguration
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    open_run(configuration)
    with task_run(configuration, "prerequisites"):
        check(configuration)
