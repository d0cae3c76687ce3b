"""Files from the Hugging Face hub (extra `hub`)."""

from __future__ import annotations

import fnmatch
import os

from .._core import UnsupportedError
from ..model import PathLike


def download(repo_id: str, pattern: str, local_dir: PathLike | None, cache_dir: PathLike | None) -> str:
    """Path of the one file of a repository that matches a pattern. ValueError where none or several do."""
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise UnsupportedError("from_pretrained: needs huggingface_hub: pip install 'lola-cpp[hub]'") from None
    names = HfApi().list_repo_files(repo_id)
    found = [name for name in names if fnmatch.fnmatch(name, pattern)]
    if len(found) != 1:
        raise ValueError(f"{repo_id}: found {len(found)} files that match {pattern!r}, wanted one of {names}")
    path: str = hf_hub_download(
        repo_id,
        found[0],
        local_dir=None if local_dir is None else os.fspath(local_dir),
        cache_dir=None if cache_dir is None else os.fspath(cache_dir),
    )
    return path
