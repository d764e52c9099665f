"""Draws the page that people look at: funnel, losses, scores, gallery."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(config: str, version: dsl.Input[dsl.Artifact], scores: dsl.Input[dsl.Metrics], page: dsl.Output[dsl.HTML]):
    """Writes the report into the workspace and points the artifact at it."""
    from kiwi.configuration import RunConfiguration
    from kiwi.reports import write_report
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "report") as task:
        path = write_report(configuration, task)
    with open(page.path, "w") as file:
        file.write(f'<a href="file://{path}">{path}</a>')
