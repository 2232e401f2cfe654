"""Sets JAX up before its first use, for commands that train or predict."""

import os
from pathlib import Path

import jax


def set_up() -> None:
    """Makes JAX keep its compiled programs and repeat every computation bit for bit.

    Call it before JAX looks for devices. Programs are kept in $JAX_COMPILATION_CACHE_DIR if it is
    set, and otherwise in `sasnet` of the user's cache folder.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "sasnet" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # A GPU's kernels would otherwise add in any order, and be chosen by their speed.
    flags = os.environ.get("XLA_FLAGS", "").strip()
    is_file = flags and not flags.startswith("-")  # that holds the flags
    if not is_file and "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
