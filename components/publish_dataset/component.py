"""Assembles the curated rows into one dataset and publishes it as a version, by one writer."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish_dataset(config: str, books: dsl.Input[dsl.Dataset], dataset: dsl.Output[dsl.Dataset]):
    """Writes version, commit, place and counts of the dataset; fails with the funnel where too few samples are left."""
    import json
    from pathlib import Path

    from kiwi.configuration import RunConfiguration
    from kiwi.curation.finished import assemble
    from kiwi.lineage import publish_dataset as publish
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "publish_dataset") as task:
        assembled = assemble(configuration, task)
        published = publish(configuration, Path(assembled["path"]), task)
    with open(dataset.path, "w") as file:
        json.dump({**assembled, **published}, file)
