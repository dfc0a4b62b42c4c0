"""Experiments on top of the library, each a program with a recorded result: ``python -m i2ilib.studies.<name>``."""
