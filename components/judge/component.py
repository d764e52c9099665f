"""Scores the benchmark's edits on the six criteria, beside the copy-source baseline."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def judge(config: str, edits: dsl.Input[dsl.Artifact], scores: dsl.Output[dsl.Metrics]):
    """Writes the scores: overall, by criterion, by kind of edit, controls and baselines."""
    import json

    from kiwi.benchmark.judge import judge_edits
    from kiwi.configuration import RunConfiguration
    from kiwi.tracking import task_run

    configuration = RunConfiguration.parse(config)
    with task_run(configuration, "judge") as task:
        result = judge_edits(configuration, task)
    with open(scores.path, "w") as file:
        json.dump(result, file)
