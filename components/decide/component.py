"""Compares the challenger with the champion on the same benchmark and judge."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def decide(config: str, version: dsl.Input[dsl.Artifact], scores: dsl.Input[dsl.Metrics]) -> str:
    """Returns "promote" or "hold"; the reasons lie in the workspace's decision.json."""
    from kiwi.configuration import RunConfiguration
    from kiwi.registry import decide as gate
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "decide") as task:
        return gate(configuration, task)
