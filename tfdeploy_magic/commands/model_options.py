"""The options of every verb that makes files of a model and measures them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, Field

from tfdeploy_magic import jobs, sources
from tfdeploy_magic.commands.declaration import FromKernel, Named, OnTheLine, Options
from tfdeploy_magic.evaluate import metrics
from tfdeploy_magic.jobs import Worker
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.sources import Source

DRAWN = 100
"""Samples that calibrate a file unless told otherwise."""


def _listed(value: object) -> object:
    return tuple(value.split(",")) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Several names with commas between them."""


class ModelOptions(Options):
    """Base of the options of every verb that makes files of a model and measures them."""

    model: Annotated[Any, FromKernel("model"), OnTheLine(positional=True)] = Field(description="the model to convert")
    calib: Annotated[Any, FromKernel("data")] = Field(
        None, description="calibration data: arrays, a tf.data dataset or a representative_dataset function"
    )
    test: Annotated[Any, FromKernel("data")] = Field(
        None, description="test data, with labels as in x_test,y_test or in a dataset's elements"
    )
    samples: int = Field(DRAWN, gt=0, description="how many samples calibrate a file, at the most")
    metric: Annotated[str | Callable[..., Any] | Named | None, FromKernel("metric")] = Field(
        None,
        description=f"what is measured beside parity: {', '.join(metrics.METRICS)}, or a function "
        "metric(labels, output), higher values better unless metric.higher_is_better is False; accuracy for "
        "classifiers when left out",
    )
    signature: str | None = Field(None, description="which signature of the model to convert")
    input_spec: str | None = Field(
        None, description="shapes of inputs that are not clear, or to fix: 1x224x224x3:float32, or NAME=?x7:int32,..."
    )
    inputs: Names = Field((), description="input tensors of a frozen graph, NAME,...")
    outputs: Names = Field((), description="output tensors of a frozen graph, NAME,...")
    select_ops: bool = Field(
        False, description="leave operations that .tflite lacks to TensorFlow's kernels; such a file cannot be measured"
    )
    trust: bool = Field(False, description="run the code that a model file carries, in a job")
    preprocess: Annotated[Callable[..., Any] | Named | None, FromKernel("function")] = Field(
        None, description="function that turns rows of your data [k, ...] into what the model takes"
    )
    postprocess: Annotated[Callable[..., Any] | Named | None, FromKernel("function")] = Field(
        None, description="function that turns the model's answers into what the metric takes"
    )
    no_cache: bool = Field(False, description="convert and measure again what was done before")
    timeout: float = Field(1800.0, gt=0, description="seconds that one step of the work may take")
    memory_limit: ByteSize | None = Field(None, description="memory that a job may use, as in 4GB")

    def source(self) -> Source:
        """Open the model; a face that looked at it already hands its source on as the model."""
        model = self.model if isinstance(self.model, Named) else Named(_name_of(self.model), self.model)
        if isinstance(model.value, Source):
            return model.value
        how = sources.How(self.signature, self.input_spec, self.inputs, self.outputs, self.trust)
        return sources.open_source(model.value, model.name, how, self.worker())

    def worker(self, listener: Listener = jobs.silent) -> Worker:
        """Return a process within the limits that were set."""
        return Worker(deadline=self.timeout, memory_limit=self.memory_limit, listener=listener)

    def kept_flags(self) -> str:
        """Return the flags that any other line about the same model needs too."""
        named = {"signature": self.signature, "input-spec": self.input_spec}
        named |= {"inputs": ",".join(self.inputs), "outputs": ",".join(self.outputs)}
        words = [f" --{name} {shlex.quote(value)}" for name, value in named.items() if value]
        for name, function in (("preprocess", self.preprocess), ("postprocess", self.postprocess)):
            words += [f" --{name} {function.name}"] if isinstance(function, Named) else []
        words += [f" --samples {self.samples}"] if self.samples != DRAWN else []
        words += [f" --{name}" for name, on in (("select-ops", self.select_ops), ("trust", self.trust)) if on]
        return "".join(words)


def value_and_name(option: Any) -> tuple[Any, str | None]:
    """Return what an option holds, and what the person calls it."""
    return (option.value, option.name) if isinstance(option, Named) else (option, None)


def _name_of(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else "model"
