"""Snapshots on their way: pipeline output is read and typed, a candidate is built, published and followed."""
