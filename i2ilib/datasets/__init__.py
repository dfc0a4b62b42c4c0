"""Readers of the data sets behind the papers, and generators that write the same layouts."""
