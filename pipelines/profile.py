"""What differs between a laptop, containers and a cluster when a pipeline is compiled (infra/profiles/*.yaml)."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from kiwi.errors import UsageError

PROFILES = Path(__file__).resolve().parents[1] / "infra" / "profiles"


@dataclass(frozen=True)
class Profile:
    """One place to run. The defaults are the laptop's.

    Attributes:
        cluster: tasks run in containers, so an image reference is needed.
        image: REPOSITORY@sha256:… or REPOSITORY:<git SHA>; KIWI_IMAGE overrides it.
        retries, backoff: for each task.
        parallelism: shards at once.
        shard_threads: threads of one task inside the fan-out; None leaves them alone.
    """

    name: str = "local"
    cluster: bool = False
    image: str | None = None
    retries: int = 1
    backoff: str = "1s"
    parallelism: int = 2
    shard_threads: int | None = None


def read_profile(name: str) -> Profile:
    """The profile of that name, or in that file.

    Raises:
        UsageError: no such profile, a field that there is not, or a cluster's profile without an image.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        if name == "local":  # installed from a wheel, without infra/
            return Profile()
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml"))) or "local"
        raise UsageError(f"no profile {name!r} ({path})", f"profiles: {known}; or name a YAML file")
    try:
        said = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"profile {path} is not YAML: {' '.join(str(error).split())}", "mend the file") from None
    unknown = sorted(set(said) - {field.name for field in fields(Profile)})
    if unknown:
        raise UsageError(
            f"profile {path}: no setting {unknown[0]!r}", f"settings: {', '.join(f.name for f in fields(Profile))}"
        )
    profile = Profile(**said)
    if profile.cluster and not (os.environ.get("KIWI_IMAGE") or profile.image):
        raise UsageError(
            f"profile {profile.name!r} runs in containers and names no image",
            "set KIWI_IMAGE=REPOSITORY@sha256:<digest> (or :<git SHA>), or `image:` in the profile",
        )
    return profile
