"""The exit task: closes the report, writes the summary and sends the records, whatever happened."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(config: str, status: dsl.PipelineTaskFinalStatus, whole: bool = True):
    """Runs after success and failure alike; `status` is the pipeline's. A part of the story leaves no summary."""
    from kiwi.configuration import RunConfiguration
    from kiwi.runs import close_run

    close_run(RunConfiguration.parse(config), status.state, whole=whole)
