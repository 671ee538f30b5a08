"""Operators by what they do to channels, where several families of rules, those of weights among them, need them."""

from oicsr.rules.table import aten

COPIES = aten("clone contiguous detach detach_copy alias alias_copy lift_fresh lift_fresh_copy")
CONVERSIONS = aten("to _to_copy type_as float half")  # to another type or device
UNCHANGED = frozenset([*COPIES, *CONVERSIONS])  # operators that give the same numbers at the same places
RESHAPES = aten(
    """
    view view_as view_copy _unsafe_view _reshape_alias reshape reshape_as flatten unflatten squeeze unsqueeze
"""
)
TURNS = aten("permute transpose t swapaxes swapdims movedim moveaxis mT adjoint numpy_T")
EXPANSIONS = aten("expand expand_as broadcast_to")
VIEWS = frozenset([*RESHAPES, *TURNS, *EXPANSIONS])  # the same numbers at other places, none left out
REPEATS = aten("repeat tile repeat_interleave")
SPREADING = frozenset([*EXPANSIONS, *REPEATS])
SHAPED_LIKE = frozenset(aten("view_as reshape_as expand_as"))  # of whose second operand the shape alone counts
SPLITS = aten("split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unbind")
CUTS = frozenset([*aten("slice narrow select"), *SPLITS])
SHIFTS = frozenset(aten("flip roll"))
MULTIPLICATIONS = frozenset(aten("mul multiply"))
DIVISIONS = frozenset(aten("div divide true_divide"))

UNARY = aten(
    """
    relu relu6 gelu silu sigmoid hardsigmoid hardswish hardtanh leaky_relu elu selu celu tanh mish softplus softsign
    dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout bernoulli neg negative exp exp2 expm1 log
    log2 log10 log1p sqrt rsqrt square abs absolute erf erfc erfinv reciprocal round floor ceil trunc frac sign sgn sin
    cos tan asin acos atan sinh cosh asinh acosh atanh logit log_sigmoid hardshrink softshrink tanhshrink rrelu
    threshold isnan isinf isfinite logical_not bitwise_not nan_to_num deg2rad rad2deg positive i0 digamma lgamma
    real imag conj conj_physical _conj resolve_conj angle zeros_like ones_like full_like empty_like rand_like
    randn_like randint_like fill zero uniform normal renorm embedding_renorm sinc signbit isposinf isneginf
    special_entr special_i0e special_i1 special_i1e special_log_ndtr special_ndtri
    exponential geometric cauchy log_normal fake_quantize_per_tensor_affine
"""
)
ADDING = aten("add sub subtract rsub lerp addcmul addcdiv")
COMBINING = aten(
    """
    mul multiply div divide floor_divide true_divide maximum minimum fmax fmin pow float_power where masked_fill clamp
    clamp_min clamp_max clip logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor gt lt ge le eq ne
    greater less greater_equal less_equal not_equal atan2 arctan2 hypot fmod remainder copysign xlogy logaddexp
    logaddexp2 complex polar heaviside isclose copy __and__ __or__ __xor__ ldexp special_xlog1py
    bitwise_left_shift bitwise_right_shift
"""
)
PRODUCTS = frozenset(aten("matmul mm bmm mv linalg_matmul einsum"))  # of two matrices, or of many
SUMMED_PRODUCTS = aten("addmm baddbmm addbmm")  # of a product and what it is added to
CONVOLUTIONS = frozenset(aten("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d"))
AFFINE = frozenset(aten("linear conv1d conv2d conv3d"))  # layers that add up what they read, place by place
OTHER_PRODUCTS = aten("linear bilinear scaled_dot_product_attention dot vdot tensordot inner")
NUMBERED = PRODUCTS | CONVOLUTIONS | {*SUMMED_PRODUCTS, *OTHER_PRODUCTS}  # counted by the order of their calls
ELEMENTWISE = UNCHANGED.union(UNARY, COMBINING, ADDING)
JOINED = aten("cat concat concatenate")
