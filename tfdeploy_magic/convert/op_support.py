"""What .tflite cannot hold, and what to do instead: measured on TensorFlow 2.21, every entry by a test.

An operation is here only when it was refused in every shape, dtype and setting that was tried: a false refusal is worse
than a missed one. So operations that some patterns save (``Erf`` inside GELU) or that a fixed batch size removes
(``Roll``) stand under "sometimes", for explaining a refusal that TensorFlow has made itself.
"""

from __future__ import annotations

from typing import NamedTuple

MOVE_OUT = "Replace it in the model, or move it out: into preprocessing or postprocessing."
"""The cure of whatever has no better one."""

UNROLL = "Build the layer with unroll=True, or the model with keras.Input(batch_size=1, ...)."
"""The cure of a loop over a batch of unknown size."""

TABLE_CURE = "Look it up before the model: .tflite has tables from string to int64 and from int64 to string only."

FIX_BATCH = "It converts with a fixed batch size: add --input-spec 1x224x224x3, with the shape of your input."


class _Group(NamedTuple):
    cure: str
    select: str = ""
    """Operations that only TensorFlow's own kernels (Flex) can hold."""
    never: str = ""
    """Operations that not even those can."""
    sometimes: str = ""


_RANDOM = _Group(
    "Call random layers with training=False; where it has to be random, tf.random.uniform and tf.random.normal of "
    "floats convert.",
    "RandomGamma RandomPoissonV2 RandomShuffle RandomUniformInt RngReadAndSkip StatelessMultinomial "
    "StatelessRandomGetKeyCounter StatelessRandomNormal StatelessRandomUniform StatelessRandomUniformInt "
    "StatelessTruncatedNormal TruncatedNormal",
    "ParameterizedTruncatedNormal",
    "StatelessRandomGammaV2 StatelessRandomNormalV2 StatelessRandomUniformFullIntV2 StatelessRandomUniformIntV2 "
    "StatelessRandomUniformV2 StatelessShuffle StatelessTruncatedNormalV2",
)

_GROUPS = (
    _Group(
        "Do the text processing before the model: let it take token ids or numbers.",
        "AsString DecodeBase64 EncodeBase64 ReduceJoin RegexFullMatch RegexReplace StaticRegexFullMatch "
        "StaticRegexReplace StringJoin StringLength StringLower StringSplit StringSplitV2 StringStrip "
        "StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber Substr UnicodeDecode "
        "UnicodeDecodeWithOffsets UnicodeEncode UnicodeTranscode",
        "StringNGrams StringUpper UnicodeScript",
    ),
    _Group("Take tf.print and tf.strings.format out of the model.", "Print PrintV2 StringFormat"),
    _Group(
        "Write it with TensorFlow operations, or move it out of the model: a .tflite file runs no Python.",
        never="EagerPyFunc PyFunc PyFuncStateless",
    ),
    _Group(
        "Decode the data before the model: let it take the decoded tensors.",
        "DecodeAndCropJpeg DecodeBmp DecodeGif DecodeImage DecodeJpeg DecodePaddedRaw DecodePng DecodeRaw DecodeWav "
        "EncodeJpeg EncodePng EncodeWav Fingerprint ParseExampleV2 SerializeTensor",
        "DecodeCSV DecodeCompressed DecodeJSONExample DecodeWebP ExtractJpegShape ParseTensor",
    ),
    _Group("Read and write files outside the model.", "ReadFile WriteFile", "MatchingFiles"),
    _Group("Pass the time as an input.", "Timestamp"),
    _Group(
        "Move the linear algebra out of the model: .tflite has no solvers and no matrix decompositions.",
        "Cholesky LogMatrixDeterminant MatrixDeterminant MatrixInverse MatrixTriangularSolve Qr",
        "BandedTriangularSolve CholeskyGrad Eig Lu MatrixLogarithm MatrixSolve MatrixSolveLs MatrixSquareRoot "
        "SelfAdjointEigV2 Svd TridiagonalMatMul TridiagonalSolve",
    ),
    _Group("Write the cross product with slices, products and tf.stack, which convert.", never="Cross"),
    _Group(
        "tf.reduce_sum(x * tf.eye(n), -1) takes a diagonal and tf.linalg.diag(x) makes one: both convert.",
        "Diag DiagPart MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3",
        sometimes="MatrixDiagV3 MatrixSetDiagV3",
    ),
    _Group(
        "Of the Fourier transforms tf.signal.rfft, rfft2d and stft of real numbers convert: use those, or move it out "
        "of the model.",
        "FFT FFT2D FFT3D IFFT IFFT2D IFFT3D IRFFT IRFFT2D IRFFT3D RFFT3D",
        "FFTND",
    ),
    _Group("Keep the real and the imaginary part as two real tensors.", "Angle Complex Conj"),
    _Group("tf.abs(tf.signal.stft(...)) converts; or compute the features before the model.", "AudioSpectrogram Mfcc"),
    _Group(
        "Resize with bilinear or nearest interpolation and without antialiasing, which convert.",
        "ResizeBicubic",
        "ResizeArea ScaleAndTranslate",
    ),
    _Group(
        "Do it before the model, or write it with arithmetic.",
        "AdjustContrastv2 AdjustHue AdjustSaturation CropAndResize Dilation2D HSVToRGB ImageProjectiveTransformV2 "
        "ImageProjectiveTransformV3 RGBToHSV SampleDistortedBoundingBoxV2",
        "DrawBoundingBoxes DrawBoundingBoxesV2 ExtractGlimpseV2 ExtractVolumePatches",
    ),
    _Group("Use keras.ops.image.extract_patches, which converts.", "ExtractImagePatches"),
    _Group(
        "Use tf.image.non_max_suppression or tf.image.non_max_suppression_padded, which convert.",
        "CombinedNonMaxSuppression NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionWithOverlaps",
    ),
    _Group("Pool two axes at a time, with tf.reshape and 2-D pooling, which convert.", "AvgPool3D MaxPool3D"),
    _Group(
        "Use MaxPooling2D or AveragePooling2D, which convert.",
        "MaxPoolWithArgmax",
        "FractionalAvgPool FractionalMaxPool",
    ),
    _RANDOM,
    _Group(
        "Write it with sin, cos, exp, log, sqrt and tf.atan2, which convert: atan(x) is tf.atan2(x, tf.ones_like(x)).",
        "Atan Cosh Sinh Tan",
        "Acos Acosh Asin Asinh Atanh",
    ),
    _Group(
        "Approximate it with exp, log and powers, or move it out: into preprocessing or postprocessing.",
        never="BesselI0 BesselI0e BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e BesselY0 "
        "BesselY1 Betainc Dawsn Digamma Erfinv Expint FresnelCos FresnelSin Igamma Igammac Ndtri NextAfter Polygamma "
        "Spence Zeta",
    ),
    _Group(
        "For GELU use keras.activations.gelu, which converts; anything else move out: into preprocessing or "
        "postprocessing.",
        sometimes="Erf Erfc",
    ),
    _Group("Write it with tf.cumsum, tf.exp and tf.math.log, which convert.", "Cumprod CumulativeLogsumexp"),
    _Group("Use tf.norm, which converts.", never="EuclideanNorm"),
    _Group("Use tf.math.floordiv and tf.math.floormod, which convert.", never="Mod TruncateMod UnravelIndex"),
    _Group(
        "Write it with products, tf.math.floormod and tf.bitwise.bitwise_xor, which convert.",
        "BitwiseAnd BitwiseOr Invert LeftShift PopulationCount",
    ),
    _Group("Compare with a tolerance: tf.abs(x - y) < 1e-5 converts.", "ApproximateEqual"),
    _Group(
        "Count with tf.reduce_sum(tf.one_hot(x, n), -2), or with keras.ops.multi_hot, which convert.",
        "Bincount DenseBincount",
        "DenseCountSparseOutput HistogramFixedWidth",
    ),
    _Group(
        "Use keras.layers.Discretization, or compare with every edge and add up, which convert.",
        "UpperBound",
        "LowerBound",
    ),
    _Group("Use tf.sort or tf.math.top_k, which convert.", never="NthElement"),
    _Group(
        MOVE_OUT,
        "InTopK InTopKV2 ListDiff UniqueV2 UniqueWithCounts",
        "EditDistance",
    ),
    _Group(
        "Use tf.math.unsorted_segment_max, _min, _mean or _prod, which convert.",
        "SegmentMax SegmentMean SegmentMin SegmentProd",
    ),
    _Group(
        "Use tf.tensor_scatter_nd_add or tf.tensor_scatter_nd_update, which convert.",
        "InplaceUpdate TensorScatterMax TensorScatterMin TensorScatterSub",
    ),
    _Group("Use tf.boolean_mask, which converts.", "DynamicPartition"),
    _Group(
        "Use dense tensors: tf.sparse.to_dense before the model, tf.gather and tf.reduce_sum in it.",
        "DenseToDenseSetOperation SparseCross SparseCrossV2 SparseFillEmptyRows SparseReduceSum SparseReorder "
        "SparseSegmentMean SparseSegmentSqrtN SparseSegmentSum SparseSlice SparseTensorDenseMatMul",
        "SetSize SparseConcat SparseSoftmax SparseTensorDenseAdd",
    ),
    _Group(
        "Pad to a dense tensor before the model, and let it take a mask where lengths matter.",
        "RaggedBincount RaggedGather RaggedRange RaggedTensorToSparse RaggedTensorToTensor",
    ),
    _Group(
        "Let the model return the logits, and decode them outside.", "CTCBeamSearchDecoder CTCGreedyDecoder", "CTCLoss"
    ),
    _Group(
        "Convert the forward pass alone: gradients belong to training.",
        "AvgPoolGrad Conv2DBackpropFilter EluGrad FusedBatchNormGradV3 LeakyReluGrad MaxPoolGrad Relu6Grad ReluGrad "
        "ResizeBilinearGrad SoftplusGrad StridedSliceGrad",
    ),
    _Group(TABLE_CURE, sometimes="HashTableV2 LookupTableFindV2 LookupTableImportV2 MutableHashTableV2"),
    _Group("Leave quantizing to the conversion, with --int8.", "QuantizeV2"),
    _Group("Write the choice as nested tf.cond, which convert.", never="Case StatelessCase"),
    _Group(
        FIX_BATCH, sometimes="BroadcastGradientArgs InvertPermutation Roll ShapeN SparseSoftmaxCrossEntropyWithLogits"
    ),
)


class _Typed(NamedTuple):
    cure: str
    dtypes: str
    operations: str


_FLOAT32 = 'Compute in float32: build the layer with dtype="float32", or put tf.cast(x, tf.float32) before it.'

_TYPED = (
    _Typed(
        _FLOAT32,
        "float64 float16 bfloat16",
        "AvgPool BatchMatMulV2 Conv2D Conv2DBackpropInput Conv3D Cos Cumsum DepthwiseConv2dNative Elu Exp Log "
        "LogSoftmax MatMul MaxPool Relu Relu6 ResizeBilinear ResizeNearestNeighbor Rsqrt Selu Sigmoid Sin Softmax "
        "Softplus Softsign Sqrt Tanh TopKV2",
    ),
    _Typed(_FLOAT32, "float16 bfloat16", "FusedBatchNormV3"),
    _Typed(
        "Cast to float32 first: tf.cast(x, tf.float32).",
        "int32 int64 uint8",
        "BatchMatMulV2 MatMul ResizeBilinear ResizeNearestNeighbor",
    ),
    _Typed(
        "Keep the real and the imaginary part as two float32 tensors.",
        "complex64 complex128",
        "BatchMatMulV2 Exp MatMul",
    ),
)

DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    18: "complex128",
    19: "float16",
    20: "resource",
    21: "variant",
}
"""The numbers of dtypes in a graph's protocol buffer (``tensorflow/core/framework/types.proto``)."""

SELECT = {operation: group.cure for group in _GROUPS for operation in group.select.split()}
"""Operation that only TensorFlow's own kernels can hold -> its cure."""

NEVER = {operation: group.cure for group in _GROUPS for operation in group.never.split()}
"""Operation that not even those can hold -> its cure."""

CURES = {**SELECT, **NEVER, **{op: group.cure for group in _GROUPS for op in group.sometimes.split()}}
"""Every operation we know a cure for -> the cure."""

TYPED = {
    (operation, dtype): group.cure
    for group in _TYPED
    for operation in group.operations.split()
    for dtype in group.dtypes.split()
}
"""Operation, and the dtype of its attribute ``T`` that .tflite does not have it in -> its cure."""

REDUCED = {dtype: group.cure for group in _TYPED[::-1] for dtype in group.dtypes.split() if "int" not in dtype}
"""A dtype in which hardly any operation exists -> the cure."""

TABLES = (("string", "int64"), ("int64", "string"))
"""From what to what a hash table of .tflite looks up."""

_EFFECTS = ("EagerPyFunc", "Print", "PrintV2", "PyFunc", "SampleDistortedBoundingBoxV2", "Timestamp", "WriteFile")

NEVER_FOLDED = frozenset((*_RANDOM.select.split(), *_RANDOM.never.split(), *_EFFECTS, "ReadFile"))
"""What stays in the graph even where all it takes is constant; any other operation is then computed beforehand."""

KEPT_WHEN_UNUSED = frozenset(_EFFECTS)
"""What stays in the graph for its effect, where nobody takes its answer."""
