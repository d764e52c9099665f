"""The dataset version that the work folder holds, for pipelines that begin at training."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def find_dataset(config: str, dataset: dsl.Output[dsl.Dataset]):
    """Writes version, commit and place; fails with the remedy where none was published."""
    import json

    from kiwi.configuration import RunConfiguration
    from kiwi.tracking import task_run
    from kiwi.workspace import published

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "find_dataset"):
        result = published(configuration)
    with open(dataset.path, "w") as file:
        json.dump(result, file)
