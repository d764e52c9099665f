"""Lists the editing pairs and says how many shards curation fans out over."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_shards(config: str) -> list[int]:
    """Shard numbers from 0, at least one; fails with the remedy where there is no pair."""
    from kiwi.configuration import RunConfiguration
    from kiwi.curation.plan import plan_shards as plan
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "plan_shards") as task:
        return plan(configuration, task)
