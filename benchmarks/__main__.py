"""``python -m benchmarks``: everything, in one table."""

from __future__ import annotations

from benchmarks import conversion, large, quantization, router, serving, startup, validation
from benchmarks.report import run

if __name__ == "__main__":
    run(
        conversion.measure,
        quantization.measure,
        large.measure,
        validation.measure,
        startup.measure,
        serving.measure,
        router.measure,
    )
