"""Kubeflow Pipelines seen from outside: submission, schedules, and what a run needs before it starts. No kfp here."""
