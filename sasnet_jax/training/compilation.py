"""Keeps compiled programs between processes, so that a second start does not compile again."""

import os
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Uses $JAX_COMPILATION_CACHE_DIR where set, else `sasnet` in the user's cache folder."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "sasnet" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
