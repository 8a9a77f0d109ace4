"""What Predict, Classify, Regress and MultiInference mean: from a request to calls, and from answers to results.

The checks and their words are those of TensorFlow Serving's predict_util.cc, classifier.cc, regressor.cc and
multi_inference.cc; REST and gRPC alike come here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Arrays
from tfdeploy_magic.serving import tensors
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.protos import (
    classification_pb2,
    inference_pb2,
    regression_pb2,
    types_pb2,
)
from tfdeploy_magic.serving.status import Code, Refusal, invalid

PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"

Signatures = Mapping[str, Any]
"""Key -> ``SignatureDef``."""


def predict_call(signatures: Signatures, request: Any, *, check_method_name: bool = False) -> Call:
    """Return the call that a ``PredictRequest`` asks for.

    Args:
        signatures: Of the version that is asked.
        request: The request.
        check_method_name: Refuse signatures whose method is none of TensorFlow Serving's.

    Raises:
        Refusal: There is no such signature, or the request does not fit it.
    """
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if key not in signatures:
        raise Refusal(Code.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.')
    signature = signatures[key]
    if check_method_name and signature.method_name not in (PREDICT, CLASSIFY, REGRESS):
        raise Refusal(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{PREDICT}, {CLASSIFY}, {REGRESS}}}. "
            f"Was: {signature.method_name}",
        )
    _check_size(signature, request.inputs)
    protos = _protos(signature, request.inputs)
    inputs = {alias: _parsed(alias, proto) for alias, proto in protos.items()}
    outputs = _outputs(signature, request.output_filter)
    check_dtypes(signature, {alias: proto.dtype for alias, proto in protos.items()})
    return Call(key, inputs, outputs)


def check_dtypes(signature: Any, given: Mapping[str, int]) -> None:
    """Refuse inputs that are not of the signature's dtypes, in the words of TensorFlow's runtime.

    Args:
        signature: The ``SignatureDef``.
        given: Alias of each input -> the number of its ``DataType``.

    Raises:
        Refusal: One is of another dtype.
    """
    for place, alias in enumerate(sorted(given, key=lambda alias: signature.inputs[alias].name)):
        wanted = signature.inputs[alias].dtype
        if wanted not in (given[alias], types_pb2.DT_INVALID):
            raise invalid(f"Expects arg[{place}] to be {_word(wanted)} but {_word(given[alias])} is provided")


def classify_call(
    signatures: Signatures, signature_name: str, examples: Sequence[bytes], *, check_method_name: bool = False
) -> Call:
    """Return the call that classifies examples.

    Args:
        signatures: Of the version that is asked.
        signature_name: The signature's key; empty for the default one.
        examples: Serialized ``tf.Example`` protos.
        check_method_name: Refuse a signature whose method is another than classify.

    Raises:
        Refusal: There is no such signature, or it is none to classify by.
    """
    key, signature = _found(signatures, signature_name, "No signature was found with the name: ")
    outputs = _classify_outputs(signature, check_method_name)
    return Call(key, _examples(signature, examples), outputs)


def regress_call(
    signatures: Signatures, signature_name: str, examples: Sequence[bytes], *, check_method_name: bool = False
) -> Call:
    """Return the call that finds a value for each example; as :func:`classify_call`."""
    key, signature = _found(signatures, signature_name, "No signature was found with the name: ")
    outputs = _regress_outputs(signature, check_method_name)
    return Call(key, _examples(signature, examples), outputs)


def classification(answers: Arrays, count: int) -> Any:
    """Return what a classification answered as ``ClassificationResult``.

    Args:
        answers: ``classes``, ``scores`` or both, each ``[examples, classes]``.
        count: How many examples were sent.

    Raises:
        Refusal: The model answered something else.
    """
    classes, scores = answers.get("classes"), answers.get("scores")
    for name, array, wanted in (("classes", classes, types_pb2.DT_STRING), ("scores", scores, types_pb2.DT_FLOAT)):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        if (got := tensors.number_of(array.dtype)) != wanted:
            raise invalid(f"Expected {name} Tensor of {_name(wanted)}. Got: {_name(got)}")
        if array.shape[0] != count:
            raise invalid(f"Expected {name} output batch size of {count}. Got: {array.shape[0]}")
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    result = classification_pb2.ClassificationResult()
    for row in range(count):
        labels = classes[row].tolist() if classes is not None else []
        values = scores[row].tolist() if scores is not None else [0.0] * len(labels)
        found = result.classifications.add()
        for label, value in zip(labels or [b""] * len(values), values, strict=True):
            found.classes.add(label=_text(label), score=value)
    return result


def regression(answers: Arrays, count: int) -> Any:
    """Return what a regression answered as ``RegressionResult``.

    Args:
        answers: ``outputs``, of shape ``[examples]`` or ``[examples, 1]``.
        count: How many examples were sent.

    Raises:
        Refusal: The model answered something else.
    """
    values = answers["outputs"]
    if values.ndim not in (1, 2) or values.shape[1:] not in ((), (1,)):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(values)}"
        )
    if len(values) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(values)}")
    if (got := tensors.number_of(values.dtype)) != types_pb2.DT_FLOAT:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_name(got)}")
    return regression_pb2.RegressionResult(
        regressions=[regression_pb2.Regression(value=value) for value in values.ravel().tolist()]
    )


def examples_of(request_input: Any) -> list[bytes]:
    """Return the examples of an ``Input``, serialized; a context's features are in each, where it has none of its own.

    Raises:
        Refusal: There are none.
    """
    kind = request_input.WhichOneof("kind")
    held = getattr(request_input, kind) if kind else None
    if held is None or not held.examples:
        raise invalid("Input is empty.")
    # Messages merge by being written one after the other, and the last of two features of one name counts.
    context = held.context.SerializeToString() if kind == "example_list_with_context" else b""
    return [context + example.SerializeToString() for example in held.examples]


def multi_calls(signatures: Signatures, request: Any, *, check_method_name: bool = False) -> list[Call]:
    """Return the calls that a ``MultiInferenceRequest`` asks for, one for each task.

    Args:
        signatures: Of the version that is asked.
        request: Its tasks classify or regress, by signatures of one model, and share the input.
        check_method_name: Refuse signatures of another method than the task's, and of different input tensors.

    Raises:
        Refusal: A task is none of these.
    """
    keys: list[str] = []
    outputs = []
    for task in request.tasks:
        _check_model(task.model_spec.name, request.tasks[0].model_spec.name)
        key = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if key in keys:
            raise invalid(f"Duplicate evaluation of signature: {key}")
        _, signature = _found(signatures, key, "Requested signature not found in model graph: ")
        outputs.append(_task_outputs(task.method_name, signature, check_method_name))
        keys.append(key)
    feeds = {signatures[key].inputs["inputs"].name for key in keys}
    if check_method_name and len(feeds) > 1:
        raise invalid("Input tensor must be the same for all Signatures.")
    examples = examples_of(request.input)
    return [Call(key, _examples(signatures[key], examples), names) for key, names in zip(keys, outputs, strict=True)]


def multi_result(method_name: str, answers: Arrays, count: int) -> Any:
    """Return what one task of a MultiInference answered as ``InferenceResult``, without its ``model_spec``.

    Raises:
        Refusal: The model answered something else.
    """
    if method_name == CLASSIFY:
        return inference_pb2.InferenceResult(classification_result=classification(answers, count))
    return inference_pb2.InferenceResult(regression_result=regression(answers, count))


def calls_of(signatures: Signatures, log: Any) -> list[Call]:
    """Return the calls that a ``PredictionLog`` tells of: what a version is warmed up by.

    Args:
        signatures: Of the version that is to answer.
        log: Of a Predict, Classify, Regress or MultiInference.

    Raises:
        Refusal: It is of something else, or does not fit the version.
    """
    kind = log.WhichOneof("log_type")
    request: Any = getattr(log, kind or "predict_log").request
    if kind == "predict_log":
        return [predict_call(signatures, request)]
    if kind == "multi_inference_log":
        return multi_calls(signatures, request)
    if kind not in ("classify_log", "regress_log"):
        number = log.DESCRIPTOR.fields_by_name[kind].number if kind else 0
        raise Refusal(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
    call_of = classify_call if kind == "classify_log" else regress_call
    return [call_of(signatures, request.model_spec.signature_name, examples_of(request.input))]


def _check_size(signature: Any, given: Mapping[str, Any]) -> None:
    if len(given) == len(signature.inputs) or (len(given) < len(signature.inputs) and signature.defaults):
        return
    sent, known = set(given), set(signature.inputs)
    raise invalid(
        f"input size does not match signature: {len(sent)}!={len(known)} len({_set(sent)}) != len({_set(known)}). "
        f"Sent extra: {_set(sent - known)}. Missing but required: {_set(known - sent)}."
    )


def _protos(signature: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensor of each input of a signature, from the request or the signature's defaults."""
    found = {}
    for alias in sorted(signature.inputs):
        source = next((source for source in (given, signature.defaults) if alias in source), None)
        if source is None:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request and "
                f"no default value provided. Inputs expected to be in the request {_set(given)}, or default input "
                f"alias set: {','.join(sorted(signature.defaults))}"
            )
        found[alias] = source[alias]
    if extra := set(given) - set(found):
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(set(given) - extra))}, "
            f"request input: {','.join(sorted(given))}"
        )
    return found


def _parsed(alias: str, proto: Any) -> Any:
    try:
        return tensors.array_of(proto)
    except Refusal as refusal:
        raise invalid(f"tensor parsing error: {alias}") from refusal


def _outputs(signature: Any, wanted: Sequence[str]) -> tuple[str, ...]:
    for place, alias in enumerate(wanted):
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{_set(signature.outputs)}."
            )
        if alias in wanted[:place]:
            raise invalid(f"duplicate output tensor alias: {alias}")
    return tuple(wanted) or tuple(sorted(signature.outputs))


def _found(signatures: Signatures, name: str, missing: str) -> tuple[str, Any]:
    key = name or DEFAULT_SIGNATURE
    if key not in signatures:
        raise invalid(f"{missing}{key}")
    return key, signatures[key]


def _check_model(name: str, first: str) -> None:
    if not name:
        raise invalid("Found ModelSpec with an empty model name.")
    if name != first:
        raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")


def _task_outputs(method: str, signature: Any, check_method_name: bool) -> tuple[str, ...]:
    if method == CLASSIFY:
        return _classify_outputs(signature, check_method_name)
    if method == REGRESS:
        return _regress_outputs(signature, check_method_name)
    raise Refusal(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {method}")


def _classify_outputs(signature: Any, check_method_name: bool) -> tuple[str, ...]:
    if check_method_name and signature.method_name != CLASSIFY:
        raise invalid(f"Expected classification signature method_name to be {CLASSIFY}. Was: {signature.method_name}")
    _check_one_input(signature)
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    _check_inputs_are_named(signature, "classification")
    names = tuple(name for name in ("classes", "scores") if name in signature.outputs)
    if not names:
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature}"
        )
    return names


def _regress_outputs(signature: Any, check_method_name: bool) -> tuple[str, ...]:
    if check_method_name and signature.method_name != REGRESS:
        raise invalid(f"Expected regression signature method_name to be {REGRESS}. Was: {signature.method_name}")
    _check_one_input(signature)
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    _check_inputs_are_named(signature, "regression")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature}")
    return ("outputs",)


def _check_one_input(signature: Any) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")


def _check_inputs_are_named(signature: Any, purpose: str) -> None:
    if "inputs" not in signature.inputs:
        raise invalid(f"No {purpose} inputs found in SignatureDef: {signature}")


def _examples(signature: Any, examples: Sequence[bytes]) -> Arrays:
    check_dtypes(signature, {"inputs": types_pb2.DT_STRING})
    array = np.empty(len(examples), object)
    array[:] = examples
    return {"inputs": array}


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _name(number: int) -> str:
    try:
        return str(types_pb2.DataType.Name(number))
    except ValueError:
        return str(number)


def _word(number: int) -> str:
    return _name(number).removeprefix("DT_").lower()


def _shape(array: Any) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _text(label: Any) -> str:
    return label if isinstance(label, str) else label.decode(errors="replace")
