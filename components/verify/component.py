"""Checks each reference against the video that it was made from."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def verify(config: str, shard: int, previous: dsl.Input[dsl.Dataset], books: dsl.Output[dsl.Dataset]):
    """Writes the stage's books: rows in, kept, rejected and failed with reasons; rows lie in the workspace."""
    import json

    from kiwi.configuration import RunConfiguration
    from kiwi.curation.stages import run_stage
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "verify", shard=shard) as task:
        result = run_stage(configuration, "verify", shard, task)
    with open(books.path, "w") as file:
        json.dump(result, file)
