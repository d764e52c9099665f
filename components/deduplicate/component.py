"""Rejects pairs and references that an earlier row already has, over all shards."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deduplicate(config: str, shards: dsl.Input[list[dsl.Dataset]], books: dsl.Output[dsl.Dataset]):
    """Writes the books of the deduplication: rows in, kept, rejected."""
    import json

    from kiwi.configuration import RunConfiguration
    from kiwi.curation.deduplicate import deduplicate as deduplicate_all
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "deduplicate") as task:
        result = deduplicate_all(configuration, task)
    with open(books.path, "w") as file:
        json.dump(result, file)
