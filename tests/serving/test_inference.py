"""Requests become calls and answers become results by TensorFlow Serving's checks, in its words."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.serving.stand_ins import FLOAT, INT64, STRING, half_plus_two, signature_def
from tfdeploy_magic.serving import inference, tensors
from tfdeploy_magic.serving.protos import example_pb2, inference_pb2, input_pb2, predict_pb2, prediction_log_pb2
from tfdeploy_magic.serving.status import Code, Refusal

SIGNATURES = half_plus_two().signatures
EXAMPLES = {"inputs": (STRING, (-1,))}
SCORES = {"scores": (FLOAT, (-1, 2))}


def predict(signature: str = "", output_filter: tuple[str, ...] = (), **inputs: npt.NDArray[Any]) -> Any:
    request = predict_pb2.PredictRequest(output_filter=output_filter)
    request.model_spec.signature_name = signature
    for alias, array in inputs.items():
        request.inputs[alias].CopyFrom(tensors.proto_of(array))
    return request


def refusal_of(make: Any, *args: Any, **options: Any) -> tuple[Code, str]:
    with pytest.raises(Refusal) as refused:
        make(*args, **options)
    return refused.value.code, refused.value.message


def invalid_of(make: Any, *args: Any, **options: Any) -> str:
    code, message = refusal_of(make, *args, **options)
    assert code is Code.INVALID_ARGUMENT
    return message


def example(**features: float | bytes) -> Any:
    made = example_pb2.Example()
    for name, value in features.items():
        if isinstance(value, bytes):
            made.features.feature[name].bytes_list.value.append(value)
        else:
            made.features.feature[name].float_list.value.append(value)
    return made


ROWS = np.float32([1, 2])
SUM = {"sum": signature_def({"a": (FLOAT, (-1,)), "b": (FLOAT, (-1,))}, {"s": (FLOAT, ()), "d": (FLOAT, ())})}


def test_a_request_that_names_no_signature_means_serving_default() -> None:
    call = inference.predict_call(SIGNATURES, predict(x=ROWS))
    assert (call.signature, call.outputs) == ("serving_default", ("y",))
    np.testing.assert_array_equal(call.inputs["x"], ROWS)


def test_the_output_filter_says_which_outputs_and_in_which_order() -> None:
    assert inference.predict_call(SUM, predict("sum", ("s", "d"), a=ROWS, b=ROWS)).outputs == ("s", "d")
    assert inference.predict_call(SUM, predict("sum", a=ROWS, b=ROWS)).outputs == ("d", "s")


def test_an_unknown_signature_of_predict_is_a_failed_precondition() -> None:
    said = refusal_of(inference.predict_call, SIGNATURES, predict("nothing", x=ROWS))
    assert said == (Code.FAILED_PRECONDITION, 'Serving signature key "nothing" not found.')


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (predict("sum", a=ROWS), "input size does not match signature: 1!=2 len({a}) != len({a,b}). "
                                 "Sent extra: {}. Missing but required: {b}."),
        (predict("sum", a=ROWS, b=ROWS, z=ROWS), "input size does not match signature: 3!=2 len({a,b,z}) != "
                                                 "len({a,b}). Sent extra: {z}. Missing but required: {}."),
        (predict("sum", a=ROWS, z=ROWS), "Signature input alias: b(feed name: b:0) not found in request and no default "
                                         "value provided. Inputs expected to be in the request {a,z}, or default "
                                         "input alias set: "),
        (predict("sum", ("q",), a=ROWS, b=ROWS), "output tensor alias not found in signature: q Outputs expected to "
                                                 "be in the set {d,s}."),
        (predict("sum", ("s", "s"), a=ROWS, b=ROWS), "duplicate output tensor alias: s"),
        (predict("sum", a=ROWS, b=ROWS.astype(np.int64)), "Expects arg[1] to be float but int64 is provided"),
        (predict("sum", a=np.array([b"1"]), b=ROWS), "Expects arg[0] to be float but string is provided"),
        (predict("sum", a=ROWS, b=ROWS.astype(np.float16)), "Expects arg[1] to be float but half is provided"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_signature_is_said_in_tensorflow_servings_words(request_: Any, said: str) -> None:
    assert invalid_of(inference.predict_call, SUM, request_) == said


def test_a_malformed_tensor_is_named() -> None:
    request = predict("sum", a=ROWS, b=ROWS)
    request.inputs["b"].tensor_content = b"123"
    assert invalid_of(inference.predict_call, SUM, request) == "tensor parsing error: b"


def test_defaults_of_a_signature_stand_in_for_what_is_not_sent() -> None:
    signature = signature_def({"a": (FLOAT, (-1,)), "b": (FLOAT, (-1,))}, {"s": (FLOAT, ())})
    signature.defaults["b"].CopyFrom(tensors.proto_of(np.float32([7])))
    call = inference.predict_call({"sum": signature}, predict("sum", a=ROWS))
    assert call.inputs["b"].tolist() == [7.0]
    said = invalid_of(inference.predict_call, {"sum": signature}, predict("sum", b=ROWS))
    assert said.endswith("Inputs expected to be in the request {b}, or default input alias set: b")
    signature.defaults["a"].CopyFrom(tensors.proto_of(np.float32([1])))
    said = invalid_of(inference.predict_call, {"sum": signature}, predict("sum", b=ROWS, q=ROWS))
    assert said == "Inputs contains invalid name. Used request inputs: b, request input: b,q"


def test_asking_never_changes_a_signature() -> None:
    signature = signature_def({"x": (FLOAT, ())}, {"y": (FLOAT, ())})
    before = signature.SerializeToString(deterministic=True)
    for make in (inference.classify_call, inference.regress_call):
        refusal_of(make, {"serving_default": signature}, "", [b""])
    refusal_of(inference.predict_call, {"serving_default": signature}, predict("", ("q",), x=ROWS))
    assert signature.SerializeToString(deterministic=True) == before


def test_a_foreign_method_is_refused_for_predict_only_where_the_check_is_on() -> None:
    foreign = {"serving_default": signature_def({"x": (FLOAT, (-1,))}, {"y": (FLOAT, (-1,))}, "something")}
    assert inference.predict_call(foreign, predict(x=ROWS)).signature == "serving_default"
    code, message = refusal_of(inference.predict_call, foreign, predict(x=ROWS), check_method_name=True)
    assert code is Code.INTERNAL
    assert message == (
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: tensorflow/serving/something"
    )


def test_examples_become_one_array_of_bytes() -> None:
    call = inference.classify_call(SIGNATURES, "classify_x_to_y", [b"one", b"another"])
    assert call.inputs["inputs"].tolist() == [b"one", b"another"]
    assert call.outputs == ("classes", "scores")
    assert inference.regress_call(SIGNATURES, "regress_x_to_y", [b"one"]).outputs == ("outputs",)


@pytest.mark.parametrize("method", ["classify", "regress"])
def test_a_tensorflow_2_export_answers_unless_the_check_is_on(method: str) -> None:
    make = getattr(inference, f"{method}_call")
    assert make(SIGNATURES, f"tf2_{method}", [b""]).signature == f"tf2_{method}"
    assert make(SIGNATURES, f"{method}_x_to_y", [b""], check_method_name=True).signature == f"{method}_x_to_y"
    noun = {"classify": "classification", "regress": "regression"}[method]
    assert invalid_of(make, SIGNATURES, f"tf2_{method}", [b""], check_method_name=True) == (
        f"Expected {noun} signature method_name to be tensorflow/serving/{method}. Was: tensorflow/serving/predict"
    )


TWO = {"inputs": (STRING, (-1,)), "more": (STRING, (-1,))}


@pytest.mark.parametrize(
    ("method", "inputs", "outputs", "said"),
    [
        ("classify", TWO, SCORES, "Expected one input Tensor."),
        ("regress", TWO, {"outputs": (FLOAT, (-1,))}, "Expected one input Tensor."),
        ("classify", EXAMPLES, dict.fromkeys(("scores", "classes", "x"), (FLOAT, (-1, 2))),
         "Expected one or two output Tensors, found 3"),
        ("regress", EXAMPLES, {"outputs": (FLOAT, (-1,)), "x": (FLOAT, (-1,))}, "Expected one output Tensor."),
        ("classify", {"x": (STRING, (-1,))}, SCORES, "No classification inputs found in SignatureDef: inputs {"),
        ("regress", {"x": (STRING, (-1,))}, {"outputs": (FLOAT, (-1,))},
         "No regression inputs found in SignatureDef: inputs {"),
        ("classify", EXAMPLES, {"y": (FLOAT, (-1, 2))},
         'Expected classification signature outputs to contain at least one of "classes" or "scores". '
         "Signature was: inputs {"),
        ("regress", EXAMPLES, {"y": (FLOAT, (-1,))}, "No regression outputs found in SignatureDef: inputs {"),
        ("classify", {"inputs": (FLOAT, (-1,))}, SCORES, "Expects arg[0] to be float but string is provided"),
    ],
)  # fmt: skip
def test_a_signature_that_cannot_classify_or_regress_says_why(
    method: str, inputs: Any, outputs: Any, said: str
) -> None:
    signatures = {"s": signature_def(inputs, outputs, method)}
    found = invalid_of(getattr(inference, f"{method}_call"), signatures, "s", [b""])
    assert found == said or (said.endswith("{") and found.startswith(said))


@pytest.mark.parametrize("make", [inference.classify_call, inference.regress_call])
def test_an_unknown_signature_of_examples_is_named(make: Any) -> None:
    assert invalid_of(make, SIGNATURES, "nothing", [b""]) == "No signature was found with the name: nothing"
    assert invalid_of(make, {}, "", [b""]) == "No signature was found with the name: serving_default"


def test_labels_and_scores_go_together() -> None:
    classes = np.array([[b"cat", "dög".encode()], [b"dog", b"cat"]], object)
    scores = np.float32([[0.75, 0.25], [0.5, 0.5]])
    result = inference.classification({"classes": classes, "scores": scores}, 2)
    rows = [[(found.label, found.score) for found in row.classes] for row in result.classifications]
    assert rows == [[("cat", 0.75), ("dög", 0.25)], [("dog", 0.5), ("cat", 0.5)]]


def test_labels_alone_have_score_zero_and_scores_alone_no_label() -> None:
    labels = inference.classification({"classes": np.array([[b"cat"]], object)}, 1)
    assert [(found.label, found.score) for found in labels.classifications[0].classes] == [("cat", 0.0)]
    scores = inference.classification({"scores": np.float32([[0.5]])}, 1)
    assert [(found.label, found.score) for found in scores.classifications[0].classes] == [("", 0.5)]


def strings(*shape: int) -> npt.NDArray[Any]:
    return np.full(shape, b"a", object)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"scores": np.float32([1, 2])}, "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ({"classes": strings(2, 1, 3)}, "Expected Tensor shape: [batch_size num_classes] but got [2,1,3]"),
        ({"scores": np.zeros((2, 3))}, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        ({"classes": np.zeros((2, 3), np.int64)}, "Expected classes Tensor of DT_STRING. Got: DT_INT64"),
        ({"scores": np.zeros((1, 3), np.float32)}, "Expected scores output batch size of 2. Got: 1"),
        ({"classes": strings(3, 1)}, "Expected classes output batch size of 2. Got: 3"),
        ({"classes": strings(2, 1), "scores": np.zeros((2, 3), np.float32)},
         "Tensors class and score should match in dim_size(1). Got 1 vs. 3"),
    ],
)  # fmt: skip
def test_answers_that_are_no_classification_say_why(answers: Any, said: str) -> None:
    assert invalid_of(inference.classification, answers, 2) == said


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_value_for_each_example(shape: tuple[int, ...]) -> None:
    result = inference.regression({"outputs": np.float32([1.5, -2]).reshape(shape)}, 2)
    assert [found.value for found in result.regressions] == [1.5, -2.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.float32([[1, 2], [3, 4]]), "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but "
                                       "got [2,2]"),
        (np.float32(1), "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []"),
        (np.float32([1]), "Input batch size did not match output batch size: 2 vs. 1"),
        (np.float64([1, 2]), "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
    ],
)  # fmt: skip
def test_answers_that_are_no_regression_say_why(values: npt.NDArray[Any], said: str) -> None:
    assert invalid_of(inference.regression, {"outputs": values}, 2) == said


def test_examples_are_taken_as_they_are() -> None:
    given = input_pb2.Input()
    given.example_list.examples.extend([example(x=1.0), example(x=2.0)])
    assert [example_pb2.Example.FromString(one) for one in inference.examples_of(given)] == [
        example(x=1.0),
        example(x=2.0),
    ]


def test_a_contexts_features_are_in_every_example_that_has_none_of_its_own() -> None:
    import tensorflow as tf

    given = input_pb2.Input()
    given.example_list_with_context.context.CopyFrom(example(x=1.0, where=b"here"))
    given.example_list_with_context.examples.extend([example(x=2.0), example(y=3.0)])
    features = {
        "x": tf.io.FixedLenFeature([], tf.float32),
        "y": tf.io.FixedLenFeature([], tf.float32, 0.0),
        "where": tf.io.FixedLenFeature([], tf.string),
    }
    parsed = tf.io.parse_example(inference.examples_of(given), features)
    assert parsed["x"].numpy().tolist() == [2.0, 1.0]
    assert parsed["y"].numpy().tolist() == [0.0, 3.0]
    assert parsed["where"].numpy().tolist() == [b"here", b"here"]


def test_no_examples_are_an_empty_input() -> None:
    nothing, no_list, only_context = input_pb2.Input(), input_pb2.Input(), input_pb2.Input()
    no_list.example_list.SetInParent()
    only_context.example_list_with_context.context.CopyFrom(example(x=1.0))
    for given in (nothing, no_list, only_context):
        assert invalid_of(inference.examples_of, given) == "Input is empty."


def multi(*tasks: tuple[str, str, str], count: int = 1) -> Any:
    request = inference_pb2.MultiInferenceRequest()
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = model, signature
    request.input.example_list.examples.extend([example(x=2.0)] * count)
    return request


BOTH = (("m", "regress_x_to_y", "regress"), ("m", "classify_x_to_y", "classify"))


def test_the_tasks_of_a_multi_inference_share_their_examples() -> None:
    first, second = inference.multi_calls(SIGNATURES, multi(*BOTH, count=3), check_method_name=True)
    assert (first.signature, second.signature) == ("regress_x_to_y", "classify_x_to_y")
    assert (
        first.inputs["inputs"].tolist() == second.inputs["inputs"].tolist() == [example(x=2.0).SerializeToString()] * 3
    )


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([("", "regress_x_to_y", "regress")], "Found ModelSpec with an empty model name."),
        ([BOTH[0], ("other", "classify_x_to_y", "classify")],
         "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
        ([BOTH[0], BOTH[0]], "Duplicate evaluation of signature: regress_x_to_y"),
        ([BOTH[0], ("m", "nothing", "classify")], "Requested signature not found in model graph: nothing"),
        ([("m", "regress_x_to_y", "classify")],
         'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature was: '
         + str(SIGNATURES["regress_x_to_y"])),
    ],
)  # fmt: skip
def test_tasks_that_cannot_go_together_are_refused(tasks: Any, said: str) -> None:
    assert invalid_of(inference.multi_calls, SIGNATURES, multi(*tasks)) == said


def test_a_task_neither_classifies_nor_regresses_is_unimplemented() -> None:
    said = refusal_of(inference.multi_calls, SIGNATURES, multi(("m", "serving_default", "predict")))
    assert said == (Code.UNIMPLEMENTED, "Unsupported signature method_name: tensorflow/serving/predict")


def test_tensorflow_2_exports_feed_a_tensor_for_each_signature_unless_the_check_is_on() -> None:
    signatures = {name: type(found).FromString(found.SerializeToString()) for name, found in SIGNATURES.items()}
    signatures["regress_x_to_y"].inputs["inputs"].name = "another:0"
    assert len(inference.multi_calls(signatures, multi(*BOTH))) == 2
    said = invalid_of(inference.multi_calls, signatures, multi(*BOTH), check_method_name=True)
    assert said == "Input tensor must be the same for all Signatures."


def test_a_multi_inference_without_examples_is_an_empty_input() -> None:
    assert invalid_of(inference.multi_calls, SIGNATURES, multi(*BOTH, count=0)) == "Input is empty."


def test_dtypes_that_a_signature_leaves_open_are_not_checked() -> None:
    inference.check_dtypes(signature_def({"x": (0, ())}, {}), {"x": INT64})


def test_a_log_becomes_the_calls_it_tells_of() -> None:
    def signatures_of(log: Any) -> list[str]:
        return [call.signature for call in inference.calls_of(SIGNATURES, log)]

    logs = [prediction_log_pb2.PredictionLog() for _ in range(4)]
    logs[0].predict_log.request.CopyFrom(predict(x=ROWS))
    for log, name in ((logs[1].classify_log, "classify_x_to_y"), (logs[2].regress_log, "regress_x_to_y")):
        log.request.model_spec.signature_name = name
        log.request.input.example_list.examples.append(example(x=2.0))
    logs[3].multi_inference_log.request.CopyFrom(multi(*BOTH))
    assert [signatures_of(log) for log in logs] == [
        ["serving_default"],
        ["classify_x_to_y"],
        ["regress_x_to_y"],
        ["regress_x_to_y", "classify_x_to_y"],
    ]


def test_a_log_of_anything_else_is_unimplemented() -> None:
    log = prediction_log_pb2.PredictionLog()
    assert refusal_of(inference.calls_of, SIGNATURES, log)[1] == "Unsupported log_type for warmup: 0"
    log.session_run_log.SetInParent()
    said = refusal_of(inference.calls_of, SIGNATURES, log)
    assert said == (Code.UNIMPLEMENTED, "Unsupported log_type for warmup: 5")
