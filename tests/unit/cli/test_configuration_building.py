"""Presets and overrides: what the command line makes of them."""

from pathlib import Path

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.presets import build


def tiny(**more) -> RunConfiguration:
    return build("tiny", workspace=Path("/w"), tracking_uri="sqlite:////w/m.db", **more)


def test_overrides_reach_nested_settings_and_stages_by_name():
    configuration = tiny(overrides=["curation.min_score=5", "stages.stage2.steps=7", "gate.floors.overall=2.5"])
    assert configuration.curation.min_score == 5
    assert configuration.stage("stage2").steps == 7
    assert configuration.gate.floors["overall"] == 2.5


def test_later_overrides_win():
    assert tiny(overrides=["seed=1", "seed=2"]).seed == 2


def test_an_override_changes_the_identity_and_a_place_does_not():
    assert tiny().identity() != tiny(overrides=["curation.min_score=5"]).identity()
    moved = build("tiny", workspace=Path("/elsewhere"), tracking_uri="http://server", threads=7)
    assert tiny().identity() == moved.identity()


def test_a_configuration_survives_its_canonical_string():
    configuration = tiny(pairs=Path("/pairs"))
    assert RunConfiguration.parse(configuration.canonical()) == configuration


def test_own_pairs_change_the_identity_with_their_list(tmp_path):
    listing = tmp_path / "pairs.csv"
    listing.write_text("src_video,tgt_video,prompt\na,b,c\n")
    before = tiny(pairs=tmp_path)
    listing.write_text("src_video,tgt_video,prompt\na,b,d\n")
    assert tiny(pairs=tmp_path).identity() != before.identity()


def test_an_override_below_a_value_is_refused():
    with pytest.raises(UsageError, match=r"no settings? "):
        tiny(overrides=["seed.deeper=1"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.frames=10", "model.frames: 10 frames are not 4k + 1"),
        ("stages.stage2.frames=8", "8 frames are not 4k + 1"),
        ('stages.stage1.trainable=["dit","vae"]', "no trainable part 'vae'; parts: all, lora"),
        ("stages.stage1.trainable=[]", "nothing to train"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(override, said):
    with pytest.raises(UsageError) as error:
        tiny(overrides=[override])
    assert said in error.value.message


def test_a_stage_trained_alone_may_change_how_it_is_trained_and_not_what_it_is():
    from kiwi.cli.train import _with_settings

    changed = _with_settings(tiny(), ["trainer.recompute=full", "trainer.keep=1"])
    assert (changed.trainer.recompute, changed.trainer.keep) == ("full", 1)
    assert changed.identity() == tiny().identity()
    for other in ("stages.stage1.steps=3", "seed=1", "trainer.precision=bfloat16"):
        with pytest.raises(UsageError, match=r"work folder|trainer"):
            _with_settings(tiny(), [other])


def test_a_benchmark_list_named_from_the_current_folder_is_found_by_tasks_that_run_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["benchmark.judge=mllm"]
    assert tiny(overrides=[*asked, "benchmark.listed=mine=my/list.csv"]).benchmark.listed == (
        f"mine={tmp_path}/my/list.csv"
    )
    there = "refvie-bench=s3://bucket/RefVIE-Bench"
    assert tiny(overrides=[*asked, f"benchmark.listed={there}"]).benchmark.listed == there


def test_containers_see_the_folder_of_a_benchmark_list(tmp_path):
    from pipelines.containers import mounted

    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "mine.yaml").touch()
    asked = ["benchmark.judge=mllm", f"benchmark.listed=mine={tmp_path}/list/mine.yaml", f"workspace={tmp_path}/work",
             f"tracking_uri=sqlite:///{tmp_path}/tracking/mlflow.db"]  # fmt: skip
    assert mounted(tiny(overrides=asked))[tmp_path / "list"] is False, "to be read"
