"""Interfaces to other packages and to published weights."""
