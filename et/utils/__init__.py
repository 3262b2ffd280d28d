"""Errors, files, paths and safe loading."""
