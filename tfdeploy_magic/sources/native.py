"""What TensorFlow does to the kernel beside its work: it prints to standard error, and keeps memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def native_stderr_to(path: Path) -> Iterator[None]:
    """Append everything written to file descriptor 2 to ``path``, where it can be read with the rest of the log.

    Notebooks show that descriptor's output as a red box under the cell; Python's own ``sys.stderr`` is left alone
    there. In a terminal the two are one, so this is held only around calls into TensorFlow.
    """
    saved = os.dup(2)
    try:
        with path.open("ab") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Keep TensorFlow from telling that it writes assets, of which there may be none, or restores variables."""
    import tensorflow as tf

    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)


def give_back_memory() -> None:
    """Return to the system what tracing and saving a model took: graphs are cycles, and glibc keeps freed pages."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)
