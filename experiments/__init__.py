"""Measurements and result tables of the project. Not part of the installed package."""
