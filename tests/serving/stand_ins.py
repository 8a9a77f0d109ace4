"""Models over plain numpy functions, in place of the engine (``calls.Models`` and ``calls.Servable``)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving.calls import Call, VersionStatus
from tfdeploy_magic.serving.protos import example_pb2, meta_graph_pb2, types_pb2
from tfdeploy_magic.serving.status import Code, Refusal, invalid

FLOAT, STRING, INT64 = types_pb2.DT_FLOAT, types_pb2.DT_STRING, types_pb2.DT_INT64

Ports = Mapping[str, tuple[int, tuple[int, ...]]]
"""Alias -> dtype and shape."""


def signature_def(inputs: Ports, outputs: Ports, method: str = "predict") -> Any:
    """Return a ``SignatureDef``; a method such as "predict" is one of TensorFlow Serving's."""
    made = meta_graph_pb2.SignatureDef(method_name=f"tensorflow/serving/{method}")
    for side, ports in ((made.inputs, inputs), (made.outputs, outputs)):
        for alias, (dtype, shape) in ports.items():
            side[alias].name = f"{alias}:0"
            side[alias].dtype = dtype
            side[alias].tensor_shape.SetInParent()
            for size in shape:
                side[alias].tensor_shape.dim.add(size=size)
    return made


@dataclass(eq=False)
class StandInServable:
    """A version whose signatures are numpy functions; it keeps the calls it got."""

    name: str
    version: int
    functions: Mapping[str, tuple[Any, Callable[..., Arrays]]]
    calls: list[Call] = field(default_factory=list)

    @property
    def signatures(self) -> Mapping[str, Any]:
        return {key: signature for key, (signature, _) in self.functions.items()}

    def inline(self, call: Call) -> bool:
        return True

    def independent(self, call: Call) -> bool:
        return False

    def answer(self, call: Call) -> Arrays:
        self.calls.append(call)
        answers = self.functions[call.signature][1](**call.inputs)
        return {alias: answers[alias] for alias in call.outputs}

    def submit(self, call: Call) -> Future[Arrays]:
        future: Future[Arrays] = Future()
        try:
            future.set_result(self.answer(call))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass
class StandInModels:
    """Versions by model, labels by model; it keeps the configs it got and counts the versions in use."""

    versions: Mapping[str, Mapping[int, StandInServable]]
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    failed: Mapping[int, Refusal] = field(default_factory=dict)
    configs: list[Any] = field(default_factory=list)
    refuses_config: Refusal | None = None
    in_use: int = 0

    def use(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> contextlib.AbstractContextManager[StandInServable]:
        if label is not None:
            version = self.labels.get(name, {}).get(label)
            if version is None:
                raise invalid(f"Unrecognized servable version label: {label}")
        there = self.versions.get(name, {})
        if not there or (version is not None and version not in there):
            asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise Refusal(Code.NOT_FOUND, f"Servable not found for request: {asked}")
        return self._held(there[max(there) if version is None else version])

    @contextlib.contextmanager
    def _held(self, servable: StandInServable) -> Iterator[StandInServable]:
        self.in_use += 1
        try:
            yield servable
        finally:
            self.in_use -= 1

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        there = [VersionStatus(number, "AVAILABLE") for number in self.versions.get(name, {})]
        there += [VersionStatus(number, "END", problem) for number, problem in self.failed.items()]
        if name not in self.versions:
            raise Refusal(Code.NOT_FOUND, f"Could not find any versions of model {name}")
        found = [status for status in there if version in (None, status.version)]
        if not found:
            raise Refusal(Code.NOT_FOUND, f"Could not find version {version} of model {name}")
        return sorted(found, key=lambda status: -status.version)

    def reload(self, config: Any) -> None:
        if self.refuses_config is not None:
            raise self.refuses_config
        self.configs.append(config)


def numbers_of(examples: npt.NDArray[Any], feature: str = "x") -> npt.NDArray[Any]:
    """Return the first float of a feature of each serialized ``tf.Example``."""
    parsed = [example_pb2.Example.FromString(example) for example in examples]
    return np.array([example.features.feature[feature].float_list.value[0] for example in parsed], np.float32)


def half_plus_two(version: int = 123, plus: float = 2.0, name: str = "half") -> StandInServable:
    """Return TensorFlow Serving's own test model: x * 0.5 + 2, to predict, classify and regress by."""

    def predict(x: npt.NDArray[Any]) -> Arrays:
        return {"y": (x * 0.5 + plus).astype(np.float32)}

    def classify(inputs: npt.NDArray[Any]) -> Arrays:
        scores = (numbers_of(inputs) * 0.5 + plus)[:, None]
        return {"scores": np.hstack([scores, -scores]), "classes": np.array([[b"up", b"down"]] * len(inputs), object)}

    def regress(inputs: npt.NDArray[Any]) -> Arrays:
        return {"outputs": (numbers_of(inputs) * 0.5 + plus)[:, None]}

    rows, examples = (FLOAT, (-1,)), {"inputs": (STRING, (-1,))}
    return StandInServable(
        name,
        version,
        {
            "serving_default": (signature_def({"x": rows}, {"y": rows}), predict),
            "classify_x_to_y": (
                signature_def(examples, {"classes": (STRING, (-1, 2)), "scores": (FLOAT, (-1, 2))}, "classify"),
                classify,
            ),
            "regress_x_to_y": (signature_def(examples, {"outputs": (FLOAT, (-1, 1))}, "regress"), regress),
            # As TensorFlow 2 exports: the method is predict whatever the signature is for.
            "tf2_classify": (signature_def(examples, {"scores": (FLOAT, (-1, 2))}), classify),
            "tf2_regress": (signature_def(examples, {"outputs": (FLOAT, (-1, 1))}), regress),
        },
    )
