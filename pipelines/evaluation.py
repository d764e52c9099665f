"""A trained editor to a verdict: benchmark, judge, register as challenger, report, decide, promote or hold."""

from kfp import dsl

from components.decide.component import decide
from components.hold.component import hold
from components.judge.component import judge
from components.promote.component import promote
from components.register_model.component import register_model
from components.report.component import report
from components.run_benchmark.component import run_benchmark
from pipelines.tasks import step


@dsl.pipeline(name="evaluation", description="Benchmarks an editor and promotes it if it beats the champion.")
def evaluation(config: str, model: dsl.Input[dsl.Model]):
    edited = step(run_benchmark(config=config, model=model), "Edit the benchmark")
    judged = step(judge(config=config, edits=edited.outputs["edits"]), "Judge the edits")
    scores = judged.outputs["scores"]

    registered = step(register_model(config=config, model=model, scores=scores), "Register the challenger")
    version = registered.outputs["version"]
    drawn = step(report(config=config, version=version, scores=scores), "Draw the report")
    decided = step(decide(config=config, version=version, scores=scores), "Decide").after(drawn)

    # Branching on a single-return output, with If and Else: kfp.local skips a bare If on a named output in silence.
    with dsl.If(decided.output == "promote", name="better"):
        step(promote(config=config), "Promote")
    with dsl.Else(name="not-better"):
        step(hold(config=config), "Hold")
