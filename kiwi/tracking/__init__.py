"""What a run did, task by task: records on disk while it works, MLflow runs once a server takes them.

A task writes through `task_run`; nothing in it waits for a server or imports MLflow. `send` delivers later.
"""

from kiwi.tracking.delivery import parent_run_id, send
from kiwi.tracking.records import TaskRecord, TaskRun, attempt_of, read_records, silent, task_run
from kiwi.tracking.server import TrackingError, TrackingUnavailable, tracking_uri
from kiwi.tracking.tree import list_runs, print_tree

__all__ = [
    "TaskRecord",
    "TaskRun",
    "TrackingError",
    "TrackingUnavailable",
    "attempt_of",
    "list_runs",
    "parent_run_id",
    "print_tree",
    "read_records",
    "send",
    "silent",
    "task_run",
    "tracking_uri",
]
