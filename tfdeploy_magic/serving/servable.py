"""A loaded version of a model: a Session over the SavedModel, or LiteRT over ``model.tflite``, asked by name.

TensorFlow Serving's own way is LoadSavedModel and Session::Run; a Session's callable that runs in the thread that asks
costs a tenth of what calling the signature costs.
"""

from __future__ import annotations

import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving import status
from tfdeploy_magic.serving.batching import Batched, Batcher, Rules
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.status import Code, Refusal

LITE_FILE = "model.tflite"
"""What a version directory holds that is served by ``--prefer_tflite_model``."""

SHORT_SECONDS = 0.001
"""A call that takes less is answered where it arrives: handing it to a thread and back costs as much."""

NATURAL = Rules(max_batch_size=64, max_enqueued_batches=64, num_batch_threads=os.cpu_count() or 1)
"""Batching when nobody asked for any: only what waits anyway goes together."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How models are loaded and run.

    Args:
        tags: Of the graph to load.
        lite: Serve ``model.tflite`` where there is one.
        gpu: Use GPUs.
        intra_op_threads: Of the Session; 0 leaves the choice to TensorFlow.
        inter_op_threads: Of the Session; 0 leaves the choice to TensorFlow.
        rules: Batching parameters; None where batching was not asked for.
        session_config: A ``ConfigProto`` that the Session starts from.
        lite_interpreters: How many interpreters answer calls of one .tflite file; 0 for one a CPU.
    """

    tags: tuple[str, ...] = ("serve",)
    lite: bool = False
    gpu: bool = False
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    rules: Rules | None = None
    session_config: Any = None
    lite_interpreters: int = 1


class Engine(Protocol):
    """What runs a model's graph."""

    @property
    def signatures(self) -> Mapping[str, Any]:
        """Key -> ``SignatureDef``."""

    @property
    def changes(self) -> bool:
        """Whether an answer depends on what was asked before."""

    def run(self, call: Call, *, here: bool = False) -> Arrays:
        """Answer a call; ``here`` runs its operations in this thread too, where the engine has threads of its own."""

    def close(self) -> None:
        """Give everything back."""


class LoadedVersion:
    """A version, ready to be asked (``calls.Servable``).

    Args:
        name: The model's.
        version: Its number.
        path: Its directory.
        settings: How it is loaded and run.
        batched: Told of each batch, as :class:`Batcher` has it.
        ran: Told of each run of the graph: microseconds.

    Raises:
        Refusal: It cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: Path,
        settings: Settings,
        batched: Batched = lambda *_: None,
        ran: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.name, self.version, self.path = name, version, path
        self._ran = ran
        self._engine = _load(path, settings)
        self._short: dict[str, int] = {}
        self._independent: set[str] = set()
        if not self._engine.changes:  # a model that remembers must not remember our questions
            self._try_out()
        rules = settings.rules or NATURAL
        self._batches_all = rules.every_call
        self._batcher = Batcher(self._run, rules, lambda call: call.signature in self._independent, batched)

    @property
    def signatures(self) -> Mapping[str, Any]:
        """Key -> ``SignatureDef``."""
        return self._engine.signatures

    @property
    def short(self) -> frozenset[str]:
        """The signatures whose calls are answered where they arrive."""
        return frozenset(() if self._batches_all else self._short)

    def inline(self, call: Call) -> bool:
        """Whether a call is so short that it is answered where it arrives."""
        if self._batches_all or (most := self._short.get(call.signature)) is None:
            return False
        return sum(array.size for array in call.inputs.values()) <= most

    def answer(self, call: Call) -> Arrays:
        """Answer a call, waiting for it."""
        return self._run(call, here=True) if self.inline(call) else self._batcher.submit(call).result()

    def submit(self, call: Call) -> Future[Arrays]:
        """Answer a call in another thread, together with others that wait."""
        return self._batcher.submit(call)

    def close(self) -> None:
        """Answer what waits, and unload."""
        self._batcher.close()
        self._engine.close()

    def _run(self, call: Call, here: bool = False) -> Arrays:
        began = time.perf_counter()
        answers = self._engine.run(call, here=here)
        self._ran((time.perf_counter() - began) * 1e6)
        return answers

    def _try_out(self) -> None:
        """Find out, signature by signature, how long a row takes and whether rows can be asked about together."""
        for key, signature in self.signatures.items():
            rows = [_made_up(signature, seed) for seed in (1, 2)]
            if None in rows:
                continue
            try:
                first, second = (self._engine.run(Call(key, row, tuple(signature.outputs))) for row in rows if row)
            except Refusal as refusal:  # numbers made up may be none that it takes
                _log.debug("signature %s was not tried out: %s", key, refusal)
                continue
            self._short |= self._if_short(Call(key, rows[0] or {}, tuple(signature.outputs)))
            if _rows_are_open(signature) and self._together(key, rows, (first, second)):
                self._independent.add(key)

    def _if_short(self, call: Call) -> dict[str, int]:
        """Return how many numbers a call may hold to be answered where it arrives; nothing where none should be."""
        here, there = (statistics.median(self._timed(call, here) for _ in range(7)) for here in (True, False))
        if here > min(there, SHORT_SECONDS):
            return {}
        numbers = sum(array.size for array in call.inputs.values())
        return {call.signature: int(max(1, numbers) * SHORT_SECONDS / here)}

    def _timed(self, call: Call, here: bool) -> float:
        began = time.perf_counter()
        self._engine.run(call, here=here)
        return time.perf_counter() - began

    def _together(self, key: str, rows: list[Any], alone: tuple[Arrays, Arrays]) -> bool:
        """Whether two rows are answered together as they are alone."""
        call = Call(key, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, tuple(alone[0]))
        try:
            both = self._engine.run(call)
        except Refusal:
            return False
        return all(
            both[name].shape == (2, *alone[0][name].shape[1:])
            and all(_same(both[name][at], alone[at][name][0]) for at in (0, 1))
            for name in both
        )


def _same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    if one.dtype == object:
        return bool(np.array_equal(one, other))
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True))


def _rows_are_open(signature: Any) -> bool:
    """Whether every input and output says that it takes any number of rows."""
    infos = (*signature.inputs.values(), *signature.outputs.values())
    return all(
        not info.tensor_shape.unknown_rank and info.tensor_shape.dim and info.tensor_shape.dim[0].size == -1
        for info in infos
    )


def _made_up(signature: Any, seed: int) -> Arrays | None:
    """Return one row of numbers for a signature; None where it takes texts, or too much is open.

    Nothing is ever measured on them but time, and whether the graph keeps rows apart.
    """
    import tensorflow as tf

    draw = np.random.default_rng(seed)
    made = {}
    for name, info in signature.inputs.items():
        dtype = tf.dtypes.as_dtype(info.dtype)
        if info.tensor_shape.unknown_rank or not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
            return None
        shape = [max(dim.size, 1) for dim in info.tensor_shape.dim]
        if np.prod(shape, dtype=float) > 1e8:
            return None
        values = draw.random(shape) if dtype.is_floating else draw.integers(0, 2, shape)
        made[name] = values.astype(dtype.as_numpy_dtype)
    return made


def _load(path: Path, settings: Settings) -> Engine:
    lite = path / LITE_FILE
    try:
        if settings.lite and lite.exists():
            from tfdeploy_magic.serving.lite import LiteEngine

            return LiteEngine(lite, settings.lite_interpreters)
        return _SessionEngine(path, settings)
    except Refusal:
        raise
    except Exception as error:
        if (known := _from_tensorflow(error)) is not None:
            raise known from error
        said = str(error).strip() or type(error).__name__
        kind = Code.NOT_FOUND if isinstance(error, OSError) and "does not exist" in said else Code.INVALID_ARGUMENT
        raise Refusal(kind, f"Could not load the SavedModel at {path}: {said}") from error


class _SessionEngine:
    """A Session over a SavedModel of TF1 or TF2 style."""

    def __init__(self, path: Path, settings: Settings) -> None:
        import tensorflow as tf
        from tensorflow.core.protobuf import config_pb2

        # Private, and yet the loader that tf.compat.v1.saved_model.load warns about in favour of another kind of model.
        from tensorflow.python.saved_model.loader_impl import SavedModelLoader

        config = config_pb2.ConfigProto()
        if settings.session_config is not None:
            config.CopyFrom(settings.session_config)
        config.intra_op_parallelism_threads = settings.intra_op_threads or config.intra_op_parallelism_threads
        config.inter_op_parallelism_threads = settings.inter_op_threads or config.inter_op_parallelism_threads
        config.allow_soft_placement = True
        if settings.gpu:
            config.gpu_options.allow_growth = True
        else:
            config.device_count["GPU"] = 0
        if not ((path / "saved_model.pb").exists() or (path / "saved_model.pbtxt").exists()):
            raise Refusal(Code.NOT_FOUND, f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
                          f"{path}")  # fmt: skip
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            with graph.as_default():
                meta = SavedModelLoader(str(path)).load(self._session, list(settings.tags))
        except BaseException:
            self._session.close()
            raise
        self._options = config_pb2.CallableOptions
        self.signatures = {key: meta.signature_def[key] for key in sorted(meta.signature_def) if key[:2] != "__"}
        from tfdeploy_magic.sources import graphs

        self.changes = graphs.changes_variables(_of_signatures(meta, self.signatures))
        self._callables: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def run(self, call: Call, *, here: bool = False) -> Arrays:
        """Answer a call, its operations in this thread one after another or in the Session's own."""
        key = (call.signature, tuple(call.inputs), call.outputs, here)
        found = self._callables.get(key) or self._callable(key)
        try:
            return dict(zip(call.outputs, found(*call.inputs.values()), strict=True))
        except Exception as error:
            raise _refusal_of(error) from error

    def close(self) -> None:
        """Close the Session; its variables go with it."""
        self._callables.clear()
        self._session.close()

    def _callable(self, key: tuple[Any, ...]) -> Callable[..., Any]:
        signature, inputs, outputs, here = key
        found = self.signatures[signature]
        options = self._options()
        options.feed.extend(found.inputs[name].name for name in inputs)
        options.fetch.extend(found.outputs[name].name for name in outputs)
        if here:
            options.run_options.inter_op_thread_pool = -1
        with self._lock:
            self._callables[key] = self._session._make_callable_from_options(options)
        return self._callables[key]


def _from_tensorflow(error: Any) -> Refusal | None:
    """Return the status that a ``tf.errors.OpError`` carries; None where it is another exception."""
    return status.from_number(error.error_code, error.message) if hasattr(error, "error_code") else None


def _refusal_of(error: Exception) -> Refusal:
    if (known := _from_tensorflow(error)) is not None:
        return known
    if isinstance(error, TypeError | ValueError):
        return status.invalid(str(error))
    return Refusal(Code.INTERNAL, f"{type(error).__name__}: {error}")


def _of_signatures(meta: Any, signatures: Mapping[str, Any]) -> Any:
    """Return the part of the graph that answers; what restores the variables assigns them, and is no part of it."""
    from tfdeploy_magic.sources import graphs

    tensors = [info.name for signature in signatures.values() for info in signature.outputs.values() if info.name]
    return graphs.reachable(meta.graph_def, tensors)
