"""The library behind the platform: everything that computes, and nothing that knows its orchestrator."""

__version__ = "0.1.0"
