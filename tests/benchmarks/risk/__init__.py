"""Multi-granularity distillation on tabular risk, as published (MGKD, arXiv 2509.06385); __main__.py runs it.

A teacher reads the columns that are known once a customer is served, a student those known before; both are small MLPs.
"""
