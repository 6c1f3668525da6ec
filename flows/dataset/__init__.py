"""Datasets on disk: files, summary, card, sharing."""
