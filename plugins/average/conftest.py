"""Lets the tests import the package from this folder, installed or not."""
