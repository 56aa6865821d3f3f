"""A classifier from a few examples, its files, report, backbones and page."""
