"""Dataset versions: published with DVC and git into the run's own repository, listed, compared, and pulled back.

A version is a git tag `refvie/vN`. The tag is made last, after the data lie in the remote and the commit is made, so
a publication that is killed leaves no half version, and running it again completes it. The project's own checkout is
never touched: git is told its repository in every call, and no GIT_ variable or user configuration is listened to.
"""

from kiwi.lineage.contents import describe
from kiwi.lineage.differences import diff_versions, print_differences
from kiwi.lineage.publishing import publish_dataset
from kiwi.lineage.pulling import pull
from kiwi.lineage.repository import DATASET, REMOTE, SERIES, LineageError, dvc, git, list_versions

__all__ = [
    "DATASET",
    "REMOTE",
    "SERIES",
    "LineageError",
    "describe",
    "diff_versions",
    "dvc",
    "git",
    "list_versions",
    "print_differences",
    "publish_dataset",
    "pull",
]
