"""Additions of align to PEFT. Importing it registers the methods of installed plugins (entry points in `align.peft`),
so that a folder made with one can be read by every part of align."""

from importlib.metadata import entry_points

for _entry in entry_points(group="align.peft"):
    _entry.load()
