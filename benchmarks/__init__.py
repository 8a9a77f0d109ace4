"""What this package costs beside what a person would write by hand, both measured in one run."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported, here and in jobs
