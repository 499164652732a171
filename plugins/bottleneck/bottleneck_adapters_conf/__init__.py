"""Additions of this plugin to the configuration: one folder for each kind of plug."""
