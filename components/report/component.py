"""Draws the page that people look at: decision, scores, gallery, funnel, losses."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(config: str, version: dsl.Input[dsl.Artifact], scores: dsl.Input[dsl.Metrics], page: dsl.Output[dsl.HTML]):
    """Writes the report into the workspace, and as one file that needs no other into the artifact."""
    import shutil

    from kiwi.configuration import RunConfiguration
    from kiwi.reports import ONE_FILE, write_report
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "report") as task:
        path = write_report(configuration, task)
    shutil.copyfile(path.with_name(ONE_FILE), page.path)
