"""Editing pairs to a published RefVIE dataset version: the paper's four stages (section 3), shard by shard."""

from kfp import dsl

from components.deduplicate.component import deduplicate
from components.ground.component import ground
from components.ingest.component import ingest
from components.plan_shards.component import plan_shards
from components.publish_dataset.component import publish_dataset
from components.score.component import score
from components.segment.component import segment
from components.synthesize.component import synthesize
from components.unique_crops.component import unique_crops
from components.verify.component import verify
from pipelines.tasks import PROFILE, shard_step, step


@dsl.pipeline(name="refvie", description="Builds and publishes a dataset of reference-guided editing quadruplets.")
def refvie(config: str) -> dsl.Dataset:
    shards = step(plan_shards(config=config), "Plan shards")

    with dsl.ParallelFor(shards.output, name="shards", parallelism=PROFILE.parallelism) as shard:
        opened = shard_step(ingest(config=config, shard=shard), "Open and check media")
        scored = shard_step(score(config=config, shard=shard, previous=opened.outputs["books"]), "Score edits")
        grounded = shard_step(ground(config=config, shard=shard, previous=scored.outputs["books"]), "Find the region")
        cut = shard_step(segment(config=config, shard=shard, previous=grounded.outputs["books"]), "Outline it")

    crops = step(unique_crops(config=config, shards=dsl.Collected(cut.outputs["books"])), "Drop repeated crops")

    with dsl.ParallelFor(shards.output, name="references", parallelism=PROFILE.parallelism) as shard:
        made = shard_step(synthesize(config=config, shard=shard, previous=crops.outputs["books"]), "Make references")
        verified = shard_step(verify(config=config, shard=shard, previous=made.outputs["books"]), "Verify references")

    unique = step(deduplicate(config=config, shards=dsl.Collected(verified.outputs["books"])), "Deduplicate")
    published = step(publish_dataset(config=config, books=unique.outputs["books"]), "Publish the dataset")
    return published.outputs["dataset"]
