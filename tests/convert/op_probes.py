"""A small function for every operation in ``op_support``, and what the converter says of it: asked in a job."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tfdeploy_magic.artifacts.signature import Signature, TensorSpec
from tfdeploy_magic.convert import preflight
from tfdeploy_magic.convert.converter import open_graph
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.sources import graphs
from tfdeploy_magic.sources.traced import TracedModel

Spec = tuple[str, tuple[int | None, ...]]
Probe = tuple[Callable[..., Any], tuple[Spec, ...]]

NUMBERS: Spec = ("float32", (None, 4))
VECTOR: Spec = ("float32", (None,))
MATRICES: Spec = ("float32", (None, 3, 3))
PICTURES: Spec = ("float32", (None, 8, 8, 3))
BYTES: Spec = ("uint8", (None, 8, 8, 3))
VOLUMES: Spec = ("float32", (None, 8, 8, 8, 2))
WAVES: Spec = ("complex64", (None, 4))
PLANES: Spec = ("complex64", (None, 4, 4))
CUBES: Spec = ("complex64", (None, 4, 4, 4))
INTEGERS: Spec = ("int32", (None, 4))
INDICES: Spec = ("int32", (None,))
TEXTS: Spec = ("string", (None,))
TEXT: Spec = ("string", ())
TEXTS_OF_TWO: Spec = ("string", (None, 2))
ROWS: Spec = ("float32", (2, 4))
BOXES: Spec = ("float32", (10, 4))
SCORES: Spec = ("float32", (10,))


_state: list[Any] = []
"""Variables and tables of the functions, which have to live as long as those."""


def refused() -> dict[str, list[Probe]]:
    """Return operation -> functions that have it in their graph, for every operation of the table."""
    import tensorflow as tf

    raw, strings, image, linalg, signal = tf.raw_ops, tf.strings, tf.image, tf.linalg, tf.signal
    generator, counter = tf.random.Generator.from_seed(1), tf.Variable(0.0)
    _state.extend((generator, counter))
    probes: dict[str, list[Probe]] = {}

    def add(operation: str, function: Callable[..., Any], *specs: Spec) -> None:
        probes.setdefault(operation, []).append((function, specs))

    def of(spec: Spec, **functions: Callable[..., Any]) -> None:
        for operation, function in functions.items():
            add(operation, function, spec)

    of(
        TEXTS,
        StringLower=strings.lower,
        StringUpper=strings.upper,
        StringStrip=strings.strip,
        StringLength=strings.length,
        RegexReplace=lambda x: raw.RegexReplace(input=x, pattern=x[0], rewrite="b"),
        StaticRegexReplace=lambda x: strings.regex_replace(x, "a", "b"),
        RegexFullMatch=lambda x: raw.RegexFullMatch(input=x, pattern=x[0]),
        StaticRegexFullMatch=lambda x: strings.regex_full_match(x, "a.*"),
        StringSplit=lambda x: raw.StringSplit(input=x, delimiter=" ").values,
        StringSplitV2=lambda x: raw.StringSplitV2(input=x, sep=" ").values,
        StringJoin=lambda x: strings.join([x, x]),
        ReduceJoin=lambda x: strings.reduce_join(x, 0),
        StringToHashBucket=lambda x: strings.to_hash_bucket(x, 10),
        StringToHashBucketFast=lambda x: strings.to_hash_bucket_fast(x, 10),
        StringToHashBucketStrong=lambda x: strings.to_hash_bucket_strong(x, 10, [1, 2]),
        StringToNumber=strings.to_number,
        Substr=lambda x: strings.substr(x, 0, 2),
        UnicodeDecode=lambda x: strings.unicode_decode(x, "UTF-8").flat_values,
        UnicodeDecodeWithOffsets=lambda x: strings.unicode_decode_with_offsets(x, "UTF-8")[0].flat_values,
        UnicodeTranscode=lambda x: strings.unicode_transcode(x, "UTF-8", "UTF-16-BE"),
        StringNGrams=lambda x: (
            raw.StringNGrams(
                data=x,
                data_splits=tf.constant([0, 2], tf.int64),
                separator=" ",
                ngram_widths=[2],
                left_pad="",
                right_pad="",
                pad_width=0,
                preserve_short_sequences=False,
            ).ngrams
        ),
        EncodeBase64=tf.io.encode_base64,
        DecodeBase64=tf.io.decode_base64,
        DecodeRaw=lambda x: tf.io.decode_raw(x, tf.float32),
        DecodePaddedRaw=lambda x: raw.DecodePaddedRaw(input_bytes=x, fixed_length=8, out_type=tf.float32),
        DecodeCSV=lambda x: tf.io.decode_csv(x, [[0.0], [0.0]]),
        DecodeJSONExample=tf.io.decode_json_example,
        DecodeCompressed=tf.io.decode_compressed,
        ParseExampleV2=lambda x: tf.io.parse_example(x, {"a": tf.io.FixedLenFeature([], tf.float32)})["a"],
    )
    of(
        TEXT,
        ParseTensor=lambda x: tf.io.parse_tensor(x, tf.float32),
        ReadFile=tf.io.read_file,
        WriteFile=lambda x: [tf.io.write_file(x, x), tf.identity(x)][1],
        MatchingFiles=tf.io.matching_files,
        DecodeJpeg=lambda x: image.decode_jpeg(x, channels=3),
        DecodePng=lambda x: image.decode_png(x, channels=3),
        DecodeImage=lambda x: image.decode_image(x, channels=3, expand_animations=False),
        DecodeGif=image.decode_gif,
        DecodeBmp=image.decode_bmp,
        DecodeAndCropJpeg=lambda x: image.decode_and_crop_jpeg(x, [0, 0, 4, 4], channels=3),
        DecodeWebP=lambda x: raw.DecodeWebP(contents=x),
        ExtractJpegShape=image.extract_jpeg_shape,
        DecodeWav=lambda x: tf.audio.decode_wav(x)[0],
    )
    add("ParseExampleV2", lambda x: tf.io.parse_single_example(x, {"a": tf.io.FixedLenFeature([], tf.float32)}), TEXT)
    add("AsString", strings.as_string, NUMBERS)
    add("AsString", strings.as_string, INTEGERS)
    add("UnicodeScript", strings.unicode_script, INDICES)
    add(
        "UnicodeEncode",
        lambda x: strings.unicode_encode(tf.RaggedTensor.from_row_splits(x, [0, 2]), "UTF-8"),
        ("int32", (2,)),
    )
    add("Fingerprint", tf.fingerprint, ("uint8", (None, 4)))
    add("EncodeJpeg", image.encode_jpeg, ("uint8", (8, 8, 3)))
    add("EncodePng", image.encode_png, ("uint8", (8, 8, 3)))
    add("EncodeWav", lambda x: tf.audio.encode_wav(x, 16000), ("float32", (16, 1)))
    of(
        NUMBERS,
        SerializeTensor=tf.io.serialize_tensor,
        StringFormat=lambda x: strings.format("{}", x),
        PrintV2=lambda x: [tf.print(x), x + 1][1],
        Print=lambda x: tf.compat.v1.Print(x, [x]),
        PyFunc=lambda x: tf.numpy_function(abs, [x], tf.float32),
        PyFuncStateless=lambda x: tf.numpy_function(abs, [x], tf.float32, stateful=False),
        EagerPyFunc=lambda x: tf.py_function(abs, [x], tf.float32),
        Timestamp=lambda x: x + tf.cast(tf.timestamp(), tf.float32),
    )

    of(
        MATRICES,
        MatrixInverse=linalg.inv,
        Cholesky=linalg.cholesky,
        CholeskyGrad=lambda x: raw.CholeskyGrad(l=x, grad=x),
        Qr=lambda x: linalg.qr(x)[0],
        SelfAdjointEigV2=lambda x: linalg.eigh(x)[0],
        Eig=lambda x: linalg.eig(x)[0],
        MatrixDeterminant=linalg.det,
        LogMatrixDeterminant=lambda x: linalg.slogdet(x)[1],
        MatrixTriangularSolve=lambda x: linalg.triangular_solve(x, x),
        MatrixSolve=lambda x: linalg.solve(x, x),
        MatrixSolveLs=lambda x: linalg.lstsq(x, x, fast=False),
        MatrixLogarithm=lambda x: linalg.logm(tf.cast(x, tf.complex64)),
        MatrixSquareRoot=linalg.sqrtm,
        Lu=lambda x: linalg.lu(x)[0],
        TridiagonalSolve=lambda x: linalg.tridiagonal_solve(x, x, diagonals_format="compact"),
        TridiagonalMatMul=lambda x: raw.TridiagonalMatMul(
            superdiag=x[:, :1], maindiag=x[:, :1], subdiag=x[:, :1], rhs=x
        ),
        BandedTriangularSolve=lambda x: linalg.banded_triangular_solve(x, x),
        Cross=lambda x: linalg.cross(x, x),
        MatrixDiagPart=lambda x: raw.MatrixDiagPart(input=x),
        MatrixDiagPartV2=lambda x: raw.MatrixDiagPartV2(input=x, k=0, padding_value=0.0),
        MatrixDiagPartV3=linalg.diag_part,
    )
    for uv in (False, True):
        add("Svd", lambda x, uv=uv: linalg.svd(x, compute_uv=uv), MATRICES)
    add("MatrixDiagPartV3", lambda x: linalg.diag_part(x, k=1), MATRICES)
    add("MatrixDiagPartV3", lambda x: linalg.diag_part(tf.cast(x, tf.int32)), MATRICES)
    add("Diag", linalg.tensor_diag, ("float32", (3,)))
    add("DiagPart", linalg.tensor_diag_part, ("float32", (3, 3)))

    of(WAVES, FFT=signal.fft, IFFT=signal.ifft, IRFFT=signal.irfft, Conj=tf.math.conj, Angle=tf.math.angle)
    of(PLANES, FFT2D=signal.fft2d, IFFT2D=signal.ifft2d, IRFFT2D=signal.irfft2d)
    of(CUBES, FFT3D=signal.fft3d, IFFT3D=signal.ifft3d, IRFFT3D=signal.irfft3d)
    add("RFFT3D", signal.rfft3d, ("float32", (None, 4, 4, 4)))
    add("FFTND", lambda x: raw.FFTND(input=x, fft_length=[4], axes=[1]), WAVES)
    add("Complex", lambda x: tf.abs(tf.complex(x, x)), NUMBERS)
    add("Complex", lambda x: tf.complex(x, x), NUMBERS)
    add("AudioSpectrogram", lambda x: raw.AudioSpectrogram(input=x, window_size=4, stride=2), ("float32", (16, 1)))
    add("Mfcc", lambda x: raw.Mfcc(spectrogram=x, sample_rate=16000), ("float32", (1, 4, 513)))

    transform = [[1.0, 0, 0, 0, 1, 0, 0, 0]]
    of(
        PICTURES,
        ResizeBicubic=lambda x: image.resize(x, [4, 4], "bicubic"),
        ResizeArea=lambda x: image.resize(x, [4, 4], "area"),
        CropAndResize=lambda x: image.crop_and_resize(x, [[0.0, 0, 1, 1]], [0], [4, 4]),
        AdjustContrastv2=lambda x: image.adjust_contrast(x, 2.0),
        AdjustHue=lambda x: image.adjust_hue(x, 0.1),
        AdjustSaturation=lambda x: image.adjust_saturation(x, 2.0),
        RGBToHSV=image.rgb_to_hsv,
        HSVToRGB=image.hsv_to_rgb,
        ExtractImagePatches=lambda x: image.extract_patches(x, [1, 2, 2, 1], [1] * 4, [1] * 4, "VALID"),
        ImageProjectiveTransformV2=lambda x: raw.ImageProjectiveTransformV2(
            images=x, transforms=transform, output_shape=[8, 8], interpolation="NEAREST"
        ),
        ImageProjectiveTransformV3=lambda x: raw.ImageProjectiveTransformV3(
            images=x, transforms=transform, output_shape=[8, 8], fill_value=0.0, interpolation="BILINEAR"
        ),
        Dilation2D=lambda x: tf.nn.dilation2d(x, tf.ones([2, 2, 3]), [1] * 4, "VALID", "NHWC", [1] * 4),
        MaxPoolWithArgmax=lambda x: tf.nn.max_pool_with_argmax(x, 2, 2, "SAME")[0],
        FractionalMaxPool=lambda x: tf.nn.fractional_max_pool(x, [1, 1.44, 1.73, 1])[0],
        FractionalAvgPool=lambda x: raw.FractionalAvgPool(value=x, pooling_ratio=[1, 1.44, 1.73, 1])[0],
    )
    for method in ("lanczos3", "gaussian", "mitchellcubic"):
        add("ScaleAndTranslate", lambda x, method=method: image.resize(x, [4, 4], method), PICTURES)
    add("ScaleAndTranslate", lambda x: image.resize(x, [4, 4], antialias=True), PICTURES)
    add("ResizeBicubic", lambda x: raw.ResizeBicubic(images=x, size=[4, 4]), PICTURES)
    add("CropAndResize", lambda x, b: image.crop_and_resize(x, b, [0, 0], [4, 4], "nearest"), PICTURES, ROWS)
    add(
        "ExtractImagePatches",
        lambda x: image.extract_patches(x, [1, 4, 4, 1], [1, 4, 4, 1], [1] * 4, "SAME"),
        PICTURES,
    )
    add("DrawBoundingBoxes", lambda x: raw.DrawBoundingBoxes(images=x, boxes=tf.ones([2, 1, 4])), PICTURES)
    add(
        "DrawBoundingBoxesV2",
        lambda x: raw.DrawBoundingBoxesV2(images=x, boxes=tf.ones([2, 1, 4]), colors=tf.ones([1, 3])),
        PICTURES,
    )
    add("ExtractGlimpseV2", lambda x: image.extract_glimpse(x, [4, 4], tf.zeros([1, 2])), ("float32", (1, 8, 8, 3)))
    add("ExtractVolumePatches", lambda x: tf.extract_volume_patches(x, [1, 2, 2, 2, 1], [1] * 5, "VALID"), VOLUMES)
    add(
        "SampleDistortedBoundingBoxV2",
        lambda x: image.sample_distorted_bounding_box(x, [[[0.0, 0, 1, 1]]])[0],
        ("int32", (3,)),
    )
    add("NonMaxSuppression", lambda b, s: raw.NonMaxSuppression(boxes=b, scores=s, max_output_size=3), BOXES, SCORES)
    add(
        "NonMaxSuppressionV2",
        lambda b, s: raw.NonMaxSuppressionV2(boxes=b, scores=s, max_output_size=3, iou_threshold=0.5),
        BOXES,
        SCORES,
    )
    add(
        "NonMaxSuppressionWithOverlaps",
        lambda b, s: image.non_max_suppression_overlaps(b, s, 3),
        ("float32", (10, 10)),
        SCORES,
    )
    add(
        "CombinedNonMaxSuppression",
        lambda b, s: image.combined_non_max_suppression(b, s, 3, 3)[0],
        ("float32", (None, 10, 1, 4)),
        ("float32", (None, 10, 3)),
    )
    for window in (2, [1, 2, 2], 3):
        add("MaxPool3D", lambda x, window=window: tf.nn.max_pool3d(x, window, window, "SAME"), VOLUMES)
        add("AvgPool3D", lambda x, window=window: tf.nn.avg_pool3d(x, window, window, "VALID"), VOLUMES)

    of(
        NUMBERS,
        TruncatedNormal=lambda x: x + tf.random.truncated_normal(tf.shape(x)),
        RandomGamma=lambda x: x + tf.random.gamma([4], 1.0),
        RandomPoissonV2=lambda x: x + tf.random.poisson([4], 1.0),
        RandomShuffle=tf.random.shuffle,
        RngReadAndSkip=lambda x: x + generator.normal([4]) + counter.assign_add(1.0),
        StatelessMultinomial=lambda x: tf.random.stateless_categorical(x, 2, [1, 2]),
        StatelessRandomGetKeyCounter=lambda x: x + tf.random.stateless_uniform(tf.shape(x), [1, 2]),
        StatelessRandomNormal=lambda x: x + raw.StatelessRandomNormal(shape=[4], seed=[1, 2]),
        StatelessRandomUniform=lambda x: x + raw.StatelessRandomUniform(shape=[4], seed=[1, 2]),
        StatelessTruncatedNormal=lambda x: x + raw.StatelessTruncatedNormal(shape=[4], seed=[1, 2]),
        ParameterizedTruncatedNormal=lambda x: (
            x + raw.ParameterizedTruncatedNormal(shape=[4], means=0.0, stdevs=1.0, minvals=-1.0, maxvals=1.0)
        ),
    )
    add("RandomUniformInt", lambda x: x + tf.random.uniform(tf.shape(x), 0, 5, tf.int32), INTEGERS)
    add(
        "StatelessRandomUniformInt",
        lambda x: x + raw.StatelessRandomUniformInt(shape=[4], seed=[1, 2], minval=0, maxval=5),
        INTEGERS,
    )
    add("StatelessRandomGetKeyCounter", lambda x: x + tf.random.stateless_normal([4], [1, 2]), NUMBERS)
    add("StatelessRandomGetKeyCounter", lambda x: x + tf.random.stateless_gamma([4], [1, 2], 1.0), NUMBERS)

    math, special = tf.math, tf.math.special
    of(
        NUMBERS,
        **{
            "".join(part.capitalize() for part in name.split("_")): getattr(owner, name)
            for owner, names in (
                (math, "atan tan sinh cosh asin acos asinh acosh atanh cumprod digamma erfinv ndtri"),
                (special, "dawsn expint fresnel_cos fresnel_sin spence"),
            )
            for name in names.split()
        },
        **{
            f"Bessel{name}": getattr(special, f"bessel_{name.lower()}")
            for name in ["I0", "I0e", "I1", "I1e", "J0", "J1", "K0", "K0e", "K1", "K1e", "Y0", "Y1"]
        },
        CumulativeLogsumexp=math.cumulative_logsumexp,
        EuclideanNorm=math.reduce_euclidean_norm,
        Igamma=lambda x: math.igamma(x, x + 1),
        Igammac=lambda x: math.igammac(x, x + 1),
        Zeta=lambda x: math.zeta(x, x + 1),
        Polygamma=lambda x: math.polygamma(x, x + 1),
        NextAfter=lambda x: math.nextafter(x, x + 1),
        Betainc=lambda x: math.betainc(x, x, x),
        TruncateMod=lambda x: raw.TruncateMod(x=x, y=x + 1),
        ApproximateEqual=lambda x: raw.ApproximateEqual(x=x, y=x + 1),
        HistogramFixedWidth=lambda x: tf.histogram_fixed_width(x, [0.0, 1.0], 5),
        NthElement=lambda x: raw.NthElement(input=x, n=1),
        UniqueV2=lambda x: raw.UniqueV2(x=x, axis=[0])[0],
        TensorScatterMax=lambda x: tf.tensor_scatter_nd_max(x, [[0]], [[1.0] * 4]),
        TensorScatterMin=lambda x: tf.tensor_scatter_nd_min(x, [[0]], [[1.0] * 4]),
        TensorScatterSub=lambda x: tf.tensor_scatter_nd_sub(x, [[0]], [[1.0] * 4]),
        InplaceUpdate=lambda x: raw.InplaceUpdate(x=x, i=[0], v=[[1.0] * 4]),
        QuantizeV2=lambda x: tf.quantization.quantize(x, 0.0, 1.0, tf.quint8)[0],
    )
    add("Cumprod", lambda x: math.cumprod(x, 1), INTEGERS)
    of(
        INTEGERS,
        Mod=lambda x: raw.Mod(x=x, y=x + 1),
        TruncateMod=lambda x: raw.TruncateMod(x=x, y=x + 1),
        Invert=tf.bitwise.invert,
        PopulationCount=lambda x: raw.PopulationCount(x=x),
        DenseBincount=lambda x: math.bincount(x, minlength=5, maxlength=5, axis=-1),
        EditDistance=lambda x: tf.edit_distance(tf.sparse.from_dense(x), tf.sparse.from_dense(x)),
        DenseToDenseSetOperation=lambda x: tf.sets.intersection(x, x).values,
        SetSize=lambda x: tf.sets.size(tf.sparse.from_dense(x)),
        DenseCountSparseOutput=lambda x: tf.sparse.bincount(x, minlength=5, maxlength=5).values,
        TensorScatterMax=lambda x: tf.tensor_scatter_nd_max(x, [[0]], [[1] * 4]),
        TensorScatterSub=lambda x: tf.tensor_scatter_nd_sub(x, [[0]], [[1] * 4]),
    )
    for dtype in ("int8", "int32", "int64"):
        numbers = (dtype, (None, 4))
        add("BitwiseAnd", lambda x: tf.bitwise.bitwise_and(x, 3), numbers)
        add("BitwiseOr", lambda x: tf.bitwise.bitwise_or(x, x[:1]), numbers)
        add("LeftShift", lambda x: tf.bitwise.left_shift(x, 1), numbers)
    of(
        INDICES,
        Bincount=lambda x: raw.Bincount(arr=x, size=5, weights=tf.constant([], tf.float32)),
        DenseBincount=lambda x: math.bincount(x, minlength=5, maxlength=5),
        UnravelIndex=lambda x: tf.unravel_index(x, [2, 2]),
        UniqueWithCounts=lambda x: tf.unique_with_counts(x)[0],
        ListDiff=lambda x: raw.ListDiff(x=x, y=x)[0],
        RaggedRange=lambda x: tf.ragged.range(x).flat_values,
    )
    add("DenseBincount", lambda x: math.bincount(x, minlength=5, maxlength=5, axis=-1, binary_output=True), INTEGERS)
    add("InTopK", lambda x, y: raw.InTopK(predictions=x, targets=y, k=2), NUMBERS, INDICES)
    add("InTopKV2", lambda x, y: math.in_top_k(y, x, 2), NUMBERS, INDICES)
    add("LowerBound", lambda x: tf.searchsorted([[1.0, 2, 3]], x), ("float32", (1, 4)))
    add("UpperBound", lambda x: tf.searchsorted([[1.0, 2, 3]], x, side="right"), ("float32", (1, 4)))
    for name in ("max", "mean", "min", "prod"):
        function = getattr(math, f"segment_{name}")
        add(f"Segment{name.capitalize()}", lambda x, f=function: f(x, [0, 0]), ROWS)
        add(f"Segment{name.capitalize()}", lambda x, y, f=function: f(x, y), NUMBERS, INDICES)
    add("DynamicPartition", lambda x: tf.dynamic_partition(x, [0, 1], 2)[0], ROWS)
    add("DynamicPartition", lambda x, y: tf.dynamic_partition(x, y, 2)[0], NUMBERS, INDICES)

    sparse = tf.sparse
    of(
        NUMBERS,
        SparseTensorDenseMatMul=lambda x: sparse.sparse_dense_matmul(sparse.from_dense(x), tf.ones([4, 4])),
        SparseReduceSum=lambda x: sparse.reduce_sum(sparse.from_dense(x), 1),
        SparseFillEmptyRows=lambda x: sparse.fill_empty_rows(sparse.from_dense(x), 0.0)[0].values,
        SparseSegmentSum=lambda x: raw.SparseSegmentSum(data=x, indices=[0, 1], segment_ids=[0, 0]),
        SparseSegmentMean=lambda x: raw.SparseSegmentMean(data=x, indices=[0, 1], segment_ids=[0, 0]),
        SparseSegmentSqrtN=lambda x: raw.SparseSegmentSqrtN(data=x, indices=[0, 1], segment_ids=[0, 0]),
        SparseSlice=lambda x: sparse.slice(sparse.from_dense(x), [0, 0], [1, 1]).values,
        SparseSoftmax=lambda x: sparse.softmax(sparse.from_dense(x)).values,
        SparseConcat=lambda x: sparse.concat(0, [sparse.from_dense(x)] * 2).values,
        SparseTensorDenseAdd=lambda x: sparse.add(sparse.from_dense(x), x),
        RaggedTensorToTensor=lambda x: tf.RaggedTensor.from_tensor(x).to_tensor(),
    )
    add("SparseCross", lambda x: sparse.cross_hashed([x, x], 10).values, ("int64", (None, 1)))
    add("SparseCrossV2", lambda x: sparse.cross([x, x]).values, TEXTS_OF_TWO)
    add("SparseReorder", lambda x: sparse.reorder(tf.SparseTensor([[0]], x, [3])).values, ("float32", (1,)))
    of(
        ("float32", (2,)),
        RaggedTensorToTensor=lambda x: tf.RaggedTensor.from_row_splits(x, [0, 2]).to_tensor(),
        RaggedTensorToSparse=lambda x: tf.RaggedTensor.from_row_splits(x, [0, 2]).to_sparse().values,
        RaggedGather=lambda x: tf.gather(tf.RaggedTensor.from_row_splits(x, [0, 2]), [0]).flat_values,
    )
    add(
        "RaggedBincount",
        lambda x: math.bincount(tf.RaggedTensor.from_row_splits(x, [0, 2]), minlength=5, maxlength=5, axis=-1),
        ("int32", (2,)),
    )
    logits = ("float32", (5, 1, 4))
    add("CTCGreedyDecoder", lambda x: tf.nn.ctc_greedy_decoder(x, [5])[0][0].values, logits)
    add("CTCBeamSearchDecoder", lambda x: tf.nn.ctc_beam_search_decoder(x, [5])[0][0].values, logits)
    add(
        "CTCLoss",
        lambda x: raw.CTCLoss(inputs=x, labels_indices=[[0, 0]], labels_values=[0], sequence_length=[5])[0],
        logits,
    )
    of(
        NUMBERS,
        ReluGrad=lambda x: raw.ReluGrad(gradients=x, features=x),
        Relu6Grad=lambda x: raw.Relu6Grad(gradients=x, features=x),
        EluGrad=lambda x: raw.EluGrad(gradients=x, outputs=x),
        SoftplusGrad=lambda x: raw.SoftplusGrad(gradients=x, features=x),
        LeakyReluGrad=lambda x: raw.LeakyReluGrad(gradients=x, features=x),
        Case=lambda x: tf.switch_case(tf.cast(x[0, 0], tf.int32), [lambda: [tf.print(x), x][1], lambda: x * 2]),
        StatelessCase=lambda x: tf.switch_case(tf.cast(x[0, 0], tf.int32), [lambda: x, lambda: x * 2]),
    )
    add("StatelessCase", lambda x: tf.switch_case(tf.constant(1), [lambda: x, lambda: x * 2, lambda: x * 3]), NUMBERS)
    window = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "SAME"}
    of(
        PICTURES,
        MaxPoolGrad=lambda x: raw.MaxPoolGrad(orig_input=x, orig_output=x[:, :4, :4], grad=x[:, :4, :4], **window),
        Conv2DBackpropFilter=lambda x: raw.Conv2DBackpropFilter(
            input=x, filter_sizes=[2, 2, 3, 3], out_backprop=x, strides=[1] * 4, padding="SAME"
        ),
        FusedBatchNormGradV3=lambda x: raw.FusedBatchNormGradV3(
            y_backprop=x,
            x=x,
            scale=tf.ones(3),
            reserve_space_1=tf.ones(3),
            reserve_space_2=tf.ones(3),
            reserve_space_3=tf.ones(3),
            is_training=False,
        )[0],
        ResizeBilinearGrad=lambda x: raw.ResizeBilinearGrad(grads=x, original_image=x),
    )
    add(
        "AvgPoolGrad",
        lambda x: raw.AvgPoolGrad(orig_input_shape=[2, 8, 8, 3], grad=x[:, :4, :4], **window),
        ("float32", (2, 8, 8, 3)),
    )
    add(
        "StridedSliceGrad",
        lambda x: raw.StridedSliceGrad(shape=[4, 4], begin=[0], end=[2], strides=[1], dy=x),
        ROWS,
    )
    return probes


def refused_dtypes() -> dict[str, Probe]:
    """Return operation -> a function that has it in the dtype of its input, for every operation of ``TYPED``."""
    import tensorflow as tf

    def filled(x: Any, *shape: int) -> Any:
        return tf.ones(shape, x.dtype)

    nn = tf.nn
    unary = {
        "Cos": tf.cos,
        "Elu": nn.elu,
        "Exp": tf.exp,
        "Log": tf.math.log,
        "LogSoftmax": nn.log_softmax,
        "Relu": nn.relu,
        "Relu6": nn.relu6,
        "Rsqrt": tf.math.rsqrt,
        "Selu": nn.selu,
        "Sigmoid": tf.sigmoid,
        "Sin": tf.sin,
        "Softmax": nn.softmax,
        "Softplus": nn.softplus,
        "Softsign": nn.softsign,
        "Sqrt": tf.sqrt,
        "Tanh": tf.tanh,
        "Cumsum": tf.cumsum,
        "TopKV2": lambda x: tf.math.top_k(x, 2)[0],
        "MatMul": lambda x: x @ filled(x, 4, 4),
    }
    return {
        **{operation: (function, (NUMBERS,)) for operation, function in unary.items()},
        "BatchMatMulV2": (lambda x: x @ x, (MATRICES,)),
        "Conv2D": (lambda x: nn.conv2d(x, filled(x, 2, 2, 3, 4), 1, "SAME"), (PICTURES,)),
        "DepthwiseConv2dNative": (
            lambda x: nn.depthwise_conv2d(x, filled(x, 2, 2, 3, 1), [1] * 4, "SAME"),
            (PICTURES,),
        ),
        "Conv2DBackpropInput": (
            lambda x: nn.conv2d_transpose(x, filled(x, 2, 2, 4, 3), [2, 16, 16, 4], 2),
            (("float32", (2, 8, 8, 3)),),
        ),
        "Conv3D": (lambda x: nn.conv3d(x, filled(x, 2, 2, 2, 2, 3), [1] * 5, "SAME"), (VOLUMES,)),
        "MaxPool": (lambda x: nn.max_pool2d(x, 2, 2, "SAME"), (PICTURES,)),
        "AvgPool": (lambda x: nn.avg_pool2d(x, 2, 2, "SAME"), (PICTURES,)),
        "FusedBatchNormV3": (
            lambda x: tf.compat.v1.nn.fused_batch_norm(x, *[tf.ones(3)] * 4, is_training=False)[0],
            (PICTURES,),
        ),
        "ResizeBilinear": (lambda x: tf.image.resize(x, [4, 4]), (PICTURES,)),
        "ResizeNearestNeighbor": (lambda x: tf.image.resize(x, [4, 4], "nearest"), (PICTURES,)),
    }


def converting() -> dict[str, Probe]:
    """Return functions that convert, by what they show: a scan must find nothing in them.

    The cures that errors name are here, and what grows out of an operation of the table by itself.
    """
    import tensorflow as tf

    nn, image, math, linalg = tf.nn, tf.image, tf.math, tf.linalg
    weight = tf.Variable(tf.eye(4) * 2.0)
    large = tf.eye(20) * 2.0
    ids = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(["a", "b"]), tf.constant([1, 2], tf.int64)), -1
    )
    words = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant([1, 2], tf.int64), tf.constant(["a", "b"])), "?"
    )
    _state.extend((weight, large, ids, words))

    def unused(x: Any) -> Any:
        math.tan(x)
        return x * 2

    def only_first(x: Any) -> Any:
        with tf.control_dependencies([math.tan(x)]):
            return x * 2

    def asserted(x: Any) -> Any:
        tf.debugging.assert_less(math.tan(x), 100.0)
        return x * 2

    def unused_output(x: Any) -> Any:
        return tf.function(lambda y: (math.tan(y), y * 2))(x)[1]

    def unused_random(x: Any) -> Any:
        tf.random.shuffle(x)
        return x * 2

    def through_a_loop(x: Any) -> Any:
        def step(i: Any, y: Any, w: Any) -> Any:
            return i + 1, y @ linalg.inv(w), w

        return tf.while_loop(lambda i, y, w: i < 3, step, [0, x, tf.identity(weight)])[1]

    numbers = {
        "atan": lambda x: tf.atan2(x, tf.ones_like(x)),
        "tan": lambda x: tf.sin(x) / tf.cos(x),
        "sinh": lambda x: (tf.exp(x) - tf.exp(-x)) / 2,
        "asinh": lambda x: math.log(x + tf.sqrt(x * x + 1)),
        "acos": lambda x: tf.atan2(tf.sqrt(1 - x * x), x),
        "cumprod": lambda x: tf.exp(tf.cumsum(math.log(x), 1)),
        "norm": lambda x: tf.norm(x, axis=1),
        "approximately equal": lambda x: tf.abs(x - 1) < 1e-5,
        "top k": lambda x: tf.sort(x)[:, 0] + math.top_k(x, 2)[0][:, 1],
        "edges": lambda x: tf.reduce_sum(tf.cast(x[..., None] > [1.0, 2, 3], tf.int32), -1),
        "discretization": lambda x: tf.raw_ops.Bucketize(input=x, boundaries=[1.0, 2.0]),
        "scatter": lambda x: tf.tensor_scatter_nd_add(x, [[0]], [[-1.0] * 4]),
        "mask": lambda x: tf.boolean_mask(x, x[:, 0] > 0),
        "conditions": lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: x * 2),
        "random": lambda x: x + tf.random.uniform(tf.shape(x)) + tf.random.normal([4]),
        "rfft": lambda x: tf.abs(tf.signal.rfft(x)),
        "gelu": nn.gelu,
        "approximate gelu": lambda x: nn.gelu(x, approximate=True),
        "gelu of papers": lambda x: x * 0.5 * (1.0 + math.erf(x / tf.sqrt(2.0))),
        "softplus": nn.softplus,
        "float64 of a number": lambda x: x * tf.cast(tf.sqrt(tf.constant(2.0, tf.float64)), tf.float32),
        "float64 of constants": lambda x: (
            x + tf.cast(tf.ones([4, 4], tf.float64) @ tf.eye(4, dtype=tf.float64), "float32")[0]
        ),
        "float64 undone": lambda x: tf.cast(tf.reshape(tf.cast(x, tf.float64), [-1, 2]), tf.float32),
        "linear algebra of a weight": lambda x: x @ linalg.cholesky(weight),
        "linear algebra of a weight in a function": lambda x: x @ tf.function(linalg.inv)(weight),
        "linear algebra of a large constant": lambda x: tf.tile(x, [1, 5]) @ linalg.inv(large),
        "linear algebra of a weight in a loop": through_a_loop,
        "text of a constant": lambda x: x + tf.cast(tf.strings.length(tf.constant(["ab"]))[0], tf.float32),
        "unused": unused,
        "only before": only_first,
        "in an assertion": asserted,
        "unused output": unused_output,
        "unused random": unused_random,
        "branch of a constant": lambda x: tf.cond(tf.shape(x)[1] > 100, lambda: math.tan(x), lambda: x * 2),
        "loop": lambda x: tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2), [0, x])[1],
        "map": lambda x: tf.map_fn(lambda row: row * 2, x),
        "check numerics": lambda x: tf.debugging.check_numerics(x, "no"),
    }
    integers = {
        "bits": lambda x: tf.bitwise.bitwise_xor(x, 3) * 4 + math.floormod(x, 4) + math.floordiv(x, 2),
        "counts": lambda x: tf.reduce_sum(tf.one_hot(x, 5), 1),
        "embedding": lambda x: tf.reduce_mean(tf.gather(tf.ones([5, 2]), x), 1),
    }
    pictures = {
        "resize": lambda x: image.resize(x, [4, 4]),
        "contrast": lambda x: (x - tf.reduce_mean(x, [1, 2], keepdims=True)) * 2,
        "pooling": lambda x: nn.avg_pool2d(nn.max_pool2d(x, 2, 2, "SAME"), 2, 2, "SAME"),
        "grouped convolution": lambda x: nn.conv2d(x, tf.ones([2, 2, 1, 6]), 1, "SAME"),
    }
    return {
        **{name: (function, (NUMBERS,)) for name, function in numbers.items()},
        **{name: (function, (INTEGERS,)) for name, function in integers.items()},
        **{name: (function, (PICTURES,)) for name, function in pictures.items()},
        "pooling of volumes": (
            lambda x: tf.reshape(
                nn.max_pool2d(
                    tf.reshape(nn.max_pool2d(tf.reshape(x, [-1, 8, 8, 2]), 2, 2, "VALID"), [-1, 8, 16, 2]),
                    [2, 1],
                    [2, 1],
                    "VALID",
                ),
                [-1, 4, 4, 4, 2],
            ),
            (VOLUMES,),
        ),
        "convolution of volumes": (lambda x: nn.conv3d(x, tf.ones([2, 2, 2, 2, 3]), [1] * 5, "SAME"), (VOLUMES,)),
        "diagonal": (lambda x: tf.reduce_sum(x * tf.eye(3), -1), (MATRICES,)),
        "diagonal matrix": (linalg.diag, (NUMBERS,)),
        "cross product": (
            lambda x: tf.stack([x[:, 1] * x[:, 2] - x[:, 2] * x[:, 1]] * 3, -1),
            (MATRICES,),
        ),
        "segments": (lambda x: math.unsorted_segment_max(x, [0, 0], 2), (ROWS,)),
        "suppression": (lambda b, s: image.non_max_suppression(b, s, 3), (BOXES, SCORES)),
        "table of words": (ids.lookup, (TEXTS,)),
        "table of ids": (words.lookup, (("int64", (None,)),)),
        "equal text": (lambda x: tf.equal(x, "a"), (TEXTS,)),
    }


def ask(
    function: Callable[..., Any], specs: Sequence[Spec], *, batch: int | None = None, select_ops: bool = False
) -> dict[str, Any]:
    """Trace a function, scan its graph, and have it converted as a model is.

    Args:
        function: Of tensors.
        specs: What it takes.
        batch: A size for every dimension that is open; None leaves them open.
        select_ops: Whether TensorFlow's own kernels may stay.

    Returns:
        ``ops`` of its graph, ``problems`` of its scan, and ``message``: what the converter said, None when it worked.
    """
    import tensorflow as tf

    inputs = tuple(
        TensorSpec(f"x{position}", tuple(batch if size is None else size for size in shape), dtype)
        for position, (dtype, shape) in enumerate(specs)
    )
    traced = tf.function(lambda *xs: tf.nest.flatten(function(*xs)), autograph=False).get_concrete_function(
        *(tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in inputs)
    )
    outputs = tuple(
        TensorSpec(f"y{position}", graphs.shape_of(tensor.shape), tensor.dtype.name)
        for position, tensor in enumerate(traced.outputs)
    )
    graph_def = traced.graph.as_graph_def()
    problems = preflight.scan(
        graph_def,
        {},
        inputs=[tensor.name for tensor in traced.inputs[: len(inputs)]],
        outputs=[tensor.name for tensor in traced.outputs],
    )
    model = TracedModel("probe", "", Signature("probe", inputs, outputs), traced, call=list, trackables=tuple(_state))
    message = None
    with tempfile.TemporaryDirectory() as folder:
        saved = model.save(Path(folder) / "model")
        try:
            graph = open_graph(saved.path, saved.signature, frozen=saved.frozen, tags=saved.tags)
            graph.convert(select_ops=select_ops)
        except Exception as error:  # whatever it says is the answer
            message = f"{type(error).__name__}: {error}"
    return {
        "ops": sorted({node.op for node in graphs.nodes(graph_def)}),
        "problems": [asdict(problem) for problem in problems],
        "message": message,
    }


def variants(operation: str) -> Iterator[tuple[Probe, int | None]]:
    """Yield every function that has an operation of the table, with an open batch and with a fixed one."""
    for function, specs in refused()[operation]:
        yield (function, specs), None
        if any(None in shape for _, shape in specs):
            yield (function, specs), 2


def in_dtype(function: Callable[..., Any], dtype: str) -> Callable[..., Any]:
    """Return a function of float32 that computes in another dtype."""
    import tensorflow as tf

    return lambda x: tf.cast(function(tf.cast(x, dtype)), tf.float32)


def refused_task(report: Report, operation: str) -> list[dict[str, Any]]:
    """Ask about an operation of the table, without and with TensorFlow's own kernels."""
    return [
        {"without": ask(*probe, batch=batch), "with": ask(*probe, batch=batch, select_ops=True)}
        for probe, batch in variants(operation)
    ]


def dtype_task(report: Report, operation: str, dtype: str) -> list[dict[str, Any]]:
    """Ask about an operation in a dtype."""
    function, specs = refused_dtypes()[operation]
    probe = (in_dtype(function, dtype), specs)
    return [{"without": ask(*probe), "with": ask(*probe, select_ops=True)}]


def converting_task(report: Report, name: str) -> list[dict[str, Any]]:
    """Ask about something that converts."""
    function, specs = converting()[name]
    return [ask(function, specs, batch=batch) for batch in (None, 2)]


def alone_task(report: Report, operation: str, used: bool) -> dict[str, Any]:
    """Ask about an operation that takes constants only, or whose answer nobody takes."""
    import tensorflow as tf

    function, specs = refused()[operation][0]

    def constant(spec: Spec) -> Any:
        dtype, shape = spec
        value = tf.constant("a") if dtype == "string" else tf.ones((), dtype)
        return tf.broadcast_to(value, [size or 2 for size in shape])

    constants = [constant(spec) for spec in specs]
    return ask(lambda x: (function(*constants), x * 2) if used else [function(*constants), x * 2][1], (NUMBERS,))


def names_task(report: Report) -> dict[str, list[str]]:
    """Return the names of all functions here."""
    return {"refused": sorted(refused()), "dtypes": sorted(refused_dtypes()), "converting": sorted(converting())}
