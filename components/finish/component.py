"""The exit task: closes the report, writes the summary, sends the records, alerts and figures, whatever happened."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(config: str, status: dsl.PipelineTaskFinalStatus, whole: bool = True):
    """Runs after success and failure alike; `status` is the pipeline's. A part of the story leaves no summary."""
    from kiwi.cluster.following_jobs import stop_jobs
    from kiwi.configuration import RunConfiguration
    from kiwi.operations import close_and_announce

    try:
        close_and_announce(RunConfiguration.parse(config), status.state, whole=whole)
    finally:
        stop_jobs()
