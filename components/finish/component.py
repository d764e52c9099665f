"""The exit task: closes the report, writes the summary, sends the records, alerts and figures, whatever happened."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(config: str, status: dsl.PipelineTaskFinalStatus, page: dsl.Output[dsl.HTML], whole: bool = True):
    """Runs after success and failure alike; `status` is the pipeline's. A part of the story leaves no summary.

    `page` is the report as one file: here alone the decision, the timings, or what failed are known.
    """
    import shutil

    from kiwi.cluster.following_jobs import stop_jobs
    from kiwi.configuration import RunConfiguration
    from kiwi.operations import close_and_announce
    from kiwi.reports import ONE_FILE
    from kiwi.workspace import Workspace

    configuration = RunConfiguration.parse(config)
    try:
        close_and_announce(configuration, status.state, whole=whole)
        shutil.copyfile(Workspace.of(configuration).report.with_name(ONE_FILE), page.path)
    finally:
        stop_jobs()
