"""Draws the page that people look at, before the gate decides: scores, gallery, funnel, losses."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(config: str, version: dsl.Input[dsl.Artifact], scores: dsl.Input[dsl.Metrics]):
    """Writes the report into the workspace. The exit task draws it again with the decision, and makes it KFP's page."""
    from kiwi.configuration import RunConfiguration
    from kiwi.reports import write_report
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "report") as task:
        write_report(configuration, task)
