"""Measurements. Each prints a table for people and one last line of JSON."""
