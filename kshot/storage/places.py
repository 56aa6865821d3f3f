"""Where kshot keeps and finds files: two folders, each with its environment variable."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir", "data_dir"]


def cache_dir() -> Path:
    """The folder of decoded banks, kernels and downloads: `KSHOT_CACHE`, else `$XDG_CACHE_HOME/kshot`, else
    `~/.cache/kshot`.
    """
    if own := os.environ.get("KSHOT_CACHE"):
        return Path(own).expanduser()
    return _user_cache()


def data_dir(data_root: Path | str | None = None) -> Path:
    """Where data sets are looked for: `data_root`, else `KSHOT_DATA`, else the user's cache folder."""
    return Path(data_root or os.environ.get("KSHOT_DATA") or _user_cache()).expanduser()


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kshot"
