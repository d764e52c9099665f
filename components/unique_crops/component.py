"""Rejects rows whose crop an earlier row already has, before references are made; off unless it is asked for."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def unique_crops(config: str, shards: dsl.Input[list[dsl.Dataset]], books: dsl.Output[dsl.Dataset]):
    """Writes the stage's books: rows in, kept, rejected."""
    import json

    from kiwi.configuration import RunConfiguration
    from kiwi.curation.unique_crops import unique_crops as decide
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "unique_crops") as task:
        result = decide(configuration, task)
    with open(books.path, "w") as file:
        json.dump(result, file)
