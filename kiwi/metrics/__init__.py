"""Automatic metrics of edits: preservation, fidelity, consistency over time, likeness to words and pictures, VMAF."""
