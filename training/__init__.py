"""Labelled text in, bundle out. Imports model."""
