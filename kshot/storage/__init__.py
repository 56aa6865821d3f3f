"""Files: checkpoints with a digest, where data and caches are, downloads."""
