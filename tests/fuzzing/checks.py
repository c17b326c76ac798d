'''The properties of a program's maps. Each is a function of a program and a seed; it raises an AssertionError with the
seed and the listing, or Inapplicable where the property says nothing about the program.'''
import contextlib
import copy
import functools
import itertools
import random

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from zennit.attribution import Gradient

from zennit_dc import (
    Balanced,
    DetachedStatistics,
    Relative,
    Scaling,
    Shifting,
    SplitCAM,
    SplitGrad,
    SplitLRP,
    SplitTensor,
)
from zennit_dc.attribution import NotRecorded, Recorded

from .interpreter import Interpreter


CHECKS = {}


class Inapplicable(Exception):
    '''The property says nothing about this program.'''


def check(function):
    '''Register a property.'''
    @functools.wraps(function)
    def described(program, seed):
        try:
            return function(program, random.Random(f'{seed} {function.__name__}'))
        except AssertionError as error:
            raise AssertionError(f'{function.__name__}, seed {seed}: {error}\n{program.listing()}') from None
    CHECKS[function.__name__.removeprefix('check_')] = described
    return described


DETACHED = 'attention', 'multi_head_attention', 'layer_norm', 'group_norm', 'rms_norm', 'quotient', 'statistic'


def options(program):
    '''What a composite needs for a program.'''
    detached = any(step.family in DETACHED for step in program.steps)
    return {'canonizers': [DetachedStatistics()]} if detached else {}


def leaves(inputs):
    return [input.detach().clone().requires_grad_() for input in inputs]


def output_of(program, inputs):
    '''The plain output, of inputs that require gradients, as in-place operations with parameters need them to.'''
    return program(*leaves(inputs)).detach()


def relevance_like(output, rng):
    '''A random output relevance, positive, so that it does not matter how those of several outputs are combined.'''
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    return (torch.rand(output.shape, generator=generator, dtype=output.dtype) + .1).to(output.device)


def maps(composite, program, inputs, relevance, **kwargs):
    '''The output and the maps at the inputs; at a layer, this layer's map.'''
    inputs = leaves(inputs)
    with composite.context(program):
        output = program(*inputs)
        weights = relevance(output) if callable(relevance) else relevance
        gradients = torch.autograd.grad(output, inputs, weights, allow_unused=True, **kwargs)
    if composite.canonizers[-1].layer is not None:
        return output, [composite.saliency]
    return output, [torch.zeros_like(i) if gradient is None else gradient for i, gradient in zip(inputs, gradients)]


def rounding(program):
    '''The relative error of a map: that of float64 (1e-16), in sums of up to a thousand products, through up to a dozen
    steps, of which some cancel; or of float32, in which torch takes the slope 1 / 6 of a hard sigmoid.'''
    texts = [f'{step.code} {step.own and getattr(step, "m", "")}'.lower() for step in program.steps]
    return 1e-6 if any('hardsigmoid' in text or 'hardswish' in text for text in texts) else 1e-10


def close(program, actual, expected, what, tolerance=0.):
    '''Equality relative to the largest entry.'''
    tolerance = max(tolerance, rounding(program))
    expected = [other.like(one) if isinstance(other, MapOf) else other for one, other in zip(actual, expected)]
    size = max(tensor.abs().max().item() for tensor in expected)
    for one, other in zip(actual, expected):
        assert one.shape == other.shape, f'{what}: shapes {tuple(one.shape)} and {tuple(other.shape)}'
        error = (one - other).abs().max().item()
        assert error <= tolerance * max(size, .1), f'{what}: off by {error:.2e} where the largest entry is {size:.2e}'


def plain_gradient(program, inputs, weights, layer=None):
    '''Torch's gradient, by the inputs or by a layer's output; the mean of this over channels.'''
    targets, found = leaves(inputs), []
    with contextlib.ExitStack() as stack:
        if layer is not None:
            hook = program.get_submodule(layer).register_forward_hook(lambda _, args, output: found.append(output))
            stack.callback(hook.remove)
        stack.enter_context(Exact())
        output = program(*targets)
    targets = targets if layer is None else found
    gradients = torch.autograd.grad(output, targets, weights, allow_unused=True)
    gradients = [torch.zeros_like(i) if gradient is None else gradient for i, gradient in zip(targets, gradients)]
    return gradients if layer is None else [MapOf(gradients[0], torch.mean)]


class MapOf:
    '''A map of a layer's output, by a function that reduces channels, which are one of its axes, or several, or none;
    those of its places are in the order of the input, and constants before or after these may be left out. Which they
    are, a program does not say.'''
    def __init__(self, tensor, reduce):
        axes = range(1, tensor.ndim)
        reduced = [reduce(tensor, axis) for axis in axes]
        reduced += [tensor, *(reduce(tensor, both) for both in itertools.combinations(axes, 2))]
        self.options = [
            map.permute(0, *order) for map in reduced for order in itertools.permutations(range(1, map.ndim))
        ]

    def like(self, actual):
        '''The map that is most like another one.'''
        # an axis of which the input has one entry has one place, for which all entries of the layer's axis are reduced
        shape = [length for axis, length in enumerate(actual.shape) if axis == 0 or length > 1]
        shapes = {tuple(actual.shape), tuple(shape)}
        fitting = [part.reshape(actual.shape) for option in self.options for each in shapes
                   for part in parts(option, each)] or self.options[:1]
        return min(fitting, key=lambda option: (option - actual).abs().max() if option.shape == actual.shape else 0)


def parts(tensor, shape):
    '''A tensor if it has a shape, and else what is left of it if entries are cut off at an end of one axis.'''
    longer = [axis for axis in range(tensor.ndim) if len(shape) == tensor.ndim and tensor.shape[axis] != shape[axis]]
    if len(shape) != tensor.ndim or len(longer) > 1 or any(tensor.shape[axis] < shape[axis] for axis in longer):
        return []
    if not longer:
        return [tensor]
    axis, = longer
    return [tensor.narrow(axis, start, shape[axis]) for start in range(tensor.shape[axis] - shape[axis] + 1)]


class Exact(TorchFunctionMode):
    '''Torch's functions with the gradients that are meant: batch norm by its scale, as torch's own is wrong for some
    strides; attention weights and statistics as constants. Values stay what they are.'''
    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function in (torch.softmax, torch.Tensor.softmax, F.softmax, torch.linalg.vector_norm, torch.std):
            return output.detach()
        if function not in PATHS:
            return output
        path = PATHS[function](*args, **(kwargs or {}))
        return output.detach() + (path - path.detach())


def normalized(x, mean, variance, weight=None, bias=None, training=False, momentum=.1, eps=1e-5):
    '''A batch norm's slope times its input.'''
    scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    mean, scale, bias = (
        0 if each is None else each.reshape(1, -1, *(1,) * (x.ndim - 2)) for each in (mean, scale, bias)
    )
    return (x - mean) * scale + bias


def layer_normalized(x, shape, weight=None, bias=None, eps=1e-5):
    '''A layer norm with constant statistics.'''
    scale = torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + eps).detach() * (1 if weight is None else weight)
    return (x - x.mean(-1, keepdim=True)) * scale + (0 if bias is None else bias)


def attended(query, key, value):
    '''Attention with constant weights.'''
    return torch.softmax(query @ key.mT * query.shape[-1] ** -.5, -1).detach() @ value


def root_normalized(x, shape, weight, eps):
    '''An RMS norm with a constant statistic.'''
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps).detach() * weight


def group_normalized(x, groups, weight=None, bias=None, eps=1e-5, **kwargs):
    '''A group norm with constant statistics.'''
    rows = x.reshape(len(x), groups, -1)
    weight, bias = (each if each is None else each.reshape(-1, *(1,) * (x.ndim - 2)) for each in (weight, bias))
    scale = torch.rsqrt(rows.var(-1, unbiased=False, keepdim=True) + eps).detach()
    rows = ((rows - rows.mean(-1, keepdim=True)) * scale).reshape(x.shape)
    return rows * (1 if weight is None else weight) + (0 if bias is None else bias)


PATHS = {
    F.batch_norm: normalized, F.layer_norm: layer_normalized, F.scaled_dot_product_attention: attended,
    F.rms_norm: root_normalized, F.group_norm: group_normalized,
    F.instance_norm: lambda x, *args, **kwargs: group_normalized(x, x.shape[1], **kwargs),
}


@check
def check_output(program, rng):
    '''The output is bit-identical, in both precisions.'''
    kwargs = options(program)
    composites = [lambda: SplitGrad(.3, **kwargs), lambda: SplitLRP(**kwargs)]
    layers = program.layers(program.inputs())
    if layers:
        layer = rng.choice(layers)
        composites.append(lambda: SplitCAM(layer, **kwargs))
    for dtype in (torch.float64, torch.float32):
        converted = copy.deepcopy(program).to(dtype)
        inputs = [input.to(dtype) for input in program.inputs(ties=rng.random() < .3)]
        if rng.random() < .3 and agnostic(program):
            inputs = [input[:1] for input in inputs]
        expected = converted(*leaves(inputs))
        for composite in composites:
            try:
                with composite().context(converted):
                    output = at_layer(converted, *leaves(inputs))
            except Inapplicable:
                continue
            equal = torch.equal(output, expected)
            assert equal, f'{composite()} in {dtype}: outputs differ by {(output - expected).abs().max():.1e}'


@check
def check_half_gradient(program, rng):
    '''With a shift of one half, the map is half of the gradient, at kinks too, at the input and at a layer.'''
    if any(step.family == 'multi_head_attention' for step in program.steps):
        raise Inapplicable
    ties = rng.random() < .6
    program = quantized(program) if ties else program
    inputs, pooling = program.inputs(rng.random(), ties), rng.choice(['wta', 'convex'])
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    output = output_of(program, inputs)
    weights = torch.randn(output.shape, dtype=torch.float64, generator=generator).to(output.device)
    layers = program.layers(inputs)
    layer = rng.choice(layers) if layers and rng.random() < .4 else None
    composite = SplitGrad(.5, layer=layer, pooling=pooling, **options(program))
    expected = plain_gradient(program, inputs, weights / 2, read_at(program, layer, inputs))
    tensors = [option for each in expected for option in (each.options if layer else [each])]
    if not all(each.isfinite().all() for each in (output, *tensors)):  # a weight norm of zeros
        raise Inapplicable
    actual = at_layer(maps, composite, program, inputs, weights)[1]
    close(program, actual, expected, f'half of the gradient at {layer or "the input"}{", with ties" if ties else ""}')


def read_at(program, layer, inputs):
    '''The layer at whose output the map of a layer is read.'''
    if layer is None:
        return None
    step = program.read_at(int(layer.removeprefix('steps.')), inputs)
    # a value that another step changes has another gradient afterwards
    if step is None or f'steps.{step}' not in program.layers(inputs) or not has_rows(program, inputs, step):
        raise Inapplicable
    return f'steps.{step}'


def has_rows(program, inputs, step):
    '''Whether the samples are the rows of a step's value, for all that a NaN in one of them tells.'''
    for sample in range(program.batch):
        marked = [input.clone() for input in inputs]
        for input in marked:
            input[sample] = torch.nan
        value = program.trace(marked)[step][1].isnan()
        if len(value) != program.batch or value[:sample].any() or value[sample + 1:].any():
            return False
    return True


def quantized(program):
    '''A copy with multiples of one half as parameters, so that equal values occur.'''
    program = copy.deepcopy(program)
    for parameter in program.parameters():
        parameter.data = (parameter.data * 2).round() / 2
    return program


def agnostic(program):
    '''Whether the program is the same function of each sample for a batch of one.'''
    if not writes_all(program) or any(step.family == 'squeeze' for step in program.steps):
        return False
    try:
        for inputs in (program.inputs(), [-input for input in program.inputs()]):  # of both signs, for |x| is often x
            together = output_of(program, inputs)
            for sample in range(program.batch):
                alone = program(*leaves([input[sample:sample + 1] for input in inputs]))
                alone.sum().backward()
                if not (len(alone) == 1 and torch.allclose(alone[0], together[sample], rtol=1e-9, atol=1e-9)):
                    return False
            # what is a view of what depends on strides, and so on the size of the batch
            if shared_memory(program, inputs) != shared_memory(program, [input[:1] for input in inputs]):
                return False
        return True
    except (RuntimeError, IndexError, ValueError):
        return False
    finally:
        program.zero_grad()


def shared_memory(program, inputs):
    '''For each step, the input that its result shares memory with.'''
    return [source for *_, source, _ in program.trace(inputs)]


def writes_all(program):
    '''Whether what is changed in place is a part of all samples.'''
    for sample in range(program.batch):
        inputs = program.inputs()
        for input in inputs:
            input[sample] = torch.nan
        if not all(value.isnan().any() for step, value, *_ in program.trace(inputs) if step.changes):
            return False
    return True


def mixes(program):
    '''Whether an output depends on another sample: whether it is not a number where this sample is none.'''
    for sample in range(program.batch):
        inputs = program.inputs()
        for input in inputs:
            input[sample] = torch.nan
        marked = output_of(program, inputs).isnan().flatten(1).any(1)
        if marked[:sample].any() or marked[sample + 1:].any():
            return True
    return False


BATCH_COMPOSITES = [
    lambda **kwargs: SplitGrad(.3, **kwargs), lambda **kwargs: SplitGrad(Balanced(), **kwargs),
    lambda **kwargs: SplitLRP(.1, **kwargs),
    lambda **kwargs: SplitLRP(.1, recentering=Scaling(), **kwargs),
    lambda **kwargs: SplitLRP(.1, recentering=Scaling(.3, 1.), **kwargs),
    lambda **kwargs: SplitLRP(.1, recentering=Shifting(), **kwargs),
]


@check
def check_batch(program, rng):
    '''The map of a sample is the same, how large others in the batch may be, and alone.'''
    if mixes(program):
        raise Inapplicable
    sample, inputs = rng.randrange(program.batch), program.inputs(rng.random())
    others = [input * 100 for input in inputs]
    for one, other in zip(inputs, others):
        other[sample] = one[sample]
    create, pooling = rng.choice(BATCH_COMPOSITES), rng.choice(['wta', 'convex'])
    weights = relevance_like(output_of(program, inputs), rng)
    expected = [map[sample] for map in maps(create(pooling=pooling, **options(program)), program, inputs, weights)[1]]
    composite = create(pooling=pooling, **options(program))
    # rounding of 100 times larger numbers does not reach the sample, but other kernels may run for other batches
    actual = [map[sample] for map in maps(composite, program, others, weights)[1]]
    close(program, actual, expected, f'{composite}, sample {sample} beside others 100 times as large')
    if agnostic(program) and not is_close(program, inputs):
        chosen = slice(sample, sample + 1)
        alone = maps(composite, program, [input[chosen] for input in inputs], weights[chosen])[1]
        close(program, [map[0] for map in alone], expected, f'{composite}, sample {sample} alone')


def is_close(program, inputs):
    '''Whether rounding may choose winners, as far as a literal run can tell.'''
    try:
        return interpreted(program, inputs).close
    except Inapplicable:  # for a tie, or a step without a literal form
        return all(step.literal is not None for step in program.steps)


def interpreted(program, inputs, input_split='relu', **kwargs):
    '''A literal run.'''
    if any(step.literal is None for step in program.steps):
        raise Inapplicable
    run = Interpreter(**kwargs)
    try:
        run.run(program, inputs, input_split)
    except RuntimeError as error:
        if 'view size is not compatible' in str(error):  # the interpreter's streams are laid out in row-major order
            raise Inapplicable from error
        raise
    if run.tied:
        raise Inapplicable
    return run


def by_rows(program):
    '''Whether the samples are the rows of all values, to be seen from the steps.'''
    inputs = program.inputs()
    # samples that are picked by a list have no axis of their own that could be proven
    lost = 'x[[', 'new_zeros'
    if any(step.family in ('multi_head_attention', 'ravel') or any(each in step.code for each in lost)
           for step in program.steps):
        return False
    traces = []
    for sample in range(program.batch):
        marked = [input.clone() for input in inputs]
        for input in marked:
            input[sample] = torch.nan
        traces.append([value.isnan() for _, value, *_ in program.trace(marked)])
    return all(
        len(mask) == program.batch and not mask[:sample].any() and not mask[sample + 1:].any()
        for sample, masks in enumerate(traces) for mask in masks
    )


def recenterings(program, rng):
    '''A re-centering, for the package and literally. What a sample is, is clear where it is a row of all values.'''
    choices = [(None, None), (Shifting(), 'shifting')]
    if by_rows(program):
        choices += [(Scaling(.3, 1.), (.3, 1.)), (Scaling(), (.1, 10.))]
        choices += [(Relative(rho), rho) for rho in (0., .1, 1.)]
    return rng.choice(choices)


@check
def check_recorded(program, rng):
    '''A map that is replayed has the bits of one that is not.'''
    inputs, others = (program.inputs(rng.random()) for _ in range(2))
    if rng.random() < .8:
        raise Inapplicable  # as to record takes its time
    output = output_of(program, inputs[:1]) if len(inputs) == 1 else None
    if output is None or output.isnan().any():
        raise Inapplicable
    weights = relevance_like(output, rng)
    composite = rng.choice([SplitGrad, SplitLRP])(canonizers=options(program).get('canonizers'))
    recorded = Recorded(program, composite)
    try:
        first = recorded(inputs[0], weights)
    except NotRecorded:
        raise Inapplicable from None
    again, replayed = recorded(inputs[0], weights), recorded(others[0], weights)
    plain = Gradient(program, composite)(others[0].clone(), weights)
    for one, two in (*zip(first, again), *zip(replayed, plain)):
        assert torch.equal(one.nan_to_num(), two.nan_to_num()), f'{composite}: recorded'


@check
def check_sensitivity(program, rng):
    '''SplitGrad and the streams are the literal ones.'''
    inputs, kwargs = program.inputs(rng.random()), options(program)
    recentering, literal_recentering = recenterings(program, rng)
    split, pooling = rng.choice(['relu', 'relu', 'half']), rng.choice(['wta', 'convex'])
    run = interpreted(program, inputs, split, pooling=pooling, recentering=literal_recentering)
    weights = relevance_like(run.output.plus, rng)
    if not kwargs:
        pair = program(SplitTensor.of(inputs[0], split, pooling=pooling, recentering=recentering), *(
            SplitTensor.of(input, split, pooling=pooling, recentering=recentering) for input in inputs[1:]
        )) if len(inputs) == 1 else None
        if pair is not None:
            streams = [pair.positive_stream, pair.negative_stream]
            close(program, streams, [run.output.plus.detach(), run.output.minus.detach()], 'streams')
    alphas = [0., .3, .5] + [Balanced()] * by_rows(program)
    for _ in range(3):
        alpha, stream = rng.choice(alphas), rng.choice(['+g', '-g', 'g', '+h', '-h', 'h'])
        composite = SplitGrad(alpha, stream, pooling=pooling, input_split=split, recentering=recentering, **kwargs)
        run.alpha, run.kappa = (0., alpha.kappa) if isinstance(alpha, Balanced) else (alpha, None)
        expected = [read(stream, *pair) for pair in run.sensitivities(weights, stream[-1])]
        if run.noise < 1e-12:
            raise Inapplicable
        actual = maps(composite, program, inputs, weights)[1]
        close(program, actual, expected, f'{describe(composite)}, stream {stream}')


def describe(composite):
    canonizer = composite.canonizers[-1]
    return (
        f'{type(composite).__name__}(alpha={getattr(composite, "alpha", None)}, rule={canonizer.rule}, '
        f'layer={canonizer.layer}, {canonizer.pooling}, {canonizer.input_split}, {canonizer.recentering})'
    )


def read(stream, plus, minus):
    '''The map of a stream, from the sensitivities to both of them.'''
    return {'+': plus, '-': minus}.get(stream[0], (plus - minus) / 2)


@check
def check_relevance(program, rng):
    '''SplitLRP is the literal epsilon rule.'''
    inputs, kwargs = program.inputs(rng.random()), options(program)
    recentering, literal_recentering = recenterings(program, rng)
    split, pooling = rng.choice(['relu', 'relu', 'half']), rng.choice(['wta', 'convex'])
    run = interpreted(program, inputs, split, quantity='relevance', pooling=pooling, recentering=literal_recentering)
    weights = relevance_like(run.output.plus, rng)
    for epsilon in (.1, 1e-6):
        run.epsilon = epsilon
        stream = rng.choice(['positive', 'negative', 'combined'])
        composite = SplitLRP(
            epsilon, stream, pooling=pooling, input_split=split, recentering=recentering, **kwargs
        )
        expected = [read_relevance(stream, *pair) for pair in run.relevances(weights)]
        if run.noise < 1e-12:
            raise Inapplicable
        actual = maps(composite, program, inputs, weights)[1]
        # s - d, where it is nearly zero, has an error of 1e-16 s, and is divided by
        close(program, actual, expected, f'{describe(composite)}, stream {stream}', 1e-14 / epsilon)


def read_relevance(stream, plus, minus):
    '''The map of a stream, from the relevances of both.'''
    return {'positive': plus, 'negative': minus, 'combined': plus - minus}[stream]


@check
def check_layer(program, rng):
    '''SplitCAM, SplitGrad and SplitLRP at a layer are the literal ones.'''
    inputs, kwargs = program.inputs(rng.random()), options(program)
    layers = program.layers(inputs)
    if not layers:
        raise Inapplicable
    layer, pooling = rng.choice(layers), rng.choice(['wta', 'convex'])
    recentering, literal_recentering = recenterings(program, rng)
    method = rng.choice(['cam', 'cam', 'grad', 'lrp'])
    run = interpreted(
        program, inputs, quantity='relevance' if method == 'lrp' else 'sensitivity', pooling=pooling,
        recentering=literal_recentering, layer=read_at(program, layer, inputs)
    )
    weights = relevance_like(run.output.plus, rng)
    activation = run.leaves[0]
    if method == 'lrp':
        run.epsilon, stream = .1, rng.choice(['positive', 'negative', 'combined'])
        (plus, minus), = run.relevances(weights)
        expected = MapOf(read_relevance(stream, plus, minus), torch.sum)
        if run.noise < 1e-12:
            raise Inapplicable
        composite = SplitLRP(.1, stream, layer, pooling, recentering=recentering, **kwargs)
    else:
        run.alpha, stream = .3, rng.choice(['+g', '-g', 'g', '+h', '-h', 'h'])
        sensitivity = read(stream, *run.sensitivities(weights, stream[-1])[0])
        if method == 'cam':
            stream_value = {'+': activation.plus, '-': activation.minus}.get(stream[0], activation.original).detach()
            expected = MapOf(sensitivity * stream_value, torch.sum)
            composite = SplitCAM(layer, .3, stream, pooling, recentering=recentering, **kwargs)
        else:
            expected = MapOf(sensitivity, torch.mean)
            composite = SplitGrad(.3, stream, layer, pooling, recentering=recentering, **kwargs)
    actual = layer_maps(composite, program, inputs, weights)
    close(program, actual, [expected], f'{describe(composite)}, stream {stream}')


def at_layer(function, *args, **kwargs):
    '''Call a function, in whose composite there may be a layer of which the package says that it has no channels.'''
    try:
        return function(*args, **kwargs)
    except ValueError as error:
        if 'choose a' in str(error) or 'pass channels=' in str(error):
            raise Inapplicable from error
        raise


def layer_maps(composite, program, inputs, weights):
    '''The map at a layer, where the package can tell its channels.'''
    return at_layer(maps, composite, program, inputs, weights)[1]


@check
def check_conservation(program, rng):
    '''All relevance that enters arrives, where no constant takes any and no stream that gets some is zero.'''
    if not program.bare:
        raise Inapplicable
    inputs, pooling = program.inputs(rng.random()), rng.choice(['wta', 'convex'])
    run = interpreted(program, inputs, quantity='relevance', pooling=pooling)
    run.epsilon = 1e-20
    weights = relevance_like(run.output.plus, rng)
    total = weights.sum()
    arrived = sum((plus + minus).sum() for plus, minus in run.relevances(weights))
    if abs(arrived - total) > 1e-11 * total or run.smallest < 1e-4:
        raise Inapplicable
    actual = sum(
        map.sum() for stream in ('positive', 'negative') for map in maps(SplitLRP(
            1e-20, stream, pooling=pooling, recentering=None, **options(program)
        ), program, inputs, weights)[1]
    )
    # cancellation in s - d costs four digits where no less than 1e-4 of the streams is divided by
    close(program, [actual], [total], 'the sum of the relevances', 1e-10)


DIFFERENTIATED = [
    lambda layer, **kwargs: SplitGrad(.3, **kwargs),
    lambda layer, **kwargs: SplitLRP(.1, **kwargs),
    lambda layer, **kwargs: SplitLRP(.1, recentering=Shifting(), **kwargs),
    lambda layer, **kwargs: SplitCAM(layer, .3, **kwargs),
    lambda layer, **kwargs: SplitCAM(layer, .3, '+g', **kwargs),
]


class Projection:
    '''A random projection of the maps of a program at all inputs, as a function of inputs and parameters.'''
    def __init__(self, program, composite, weights, generator):
        self.program, self.composite, self.weights = program, composite, weights
        directions = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in program.shapes]
        self.directions = [direction.to(program.device) for direction in directions]

    def __call__(self, inputs, create_graph=False):
        with self.composite.context(self.program):
            output = at_layer(self.program, *inputs)
            found = torch.autograd.grad(output, inputs, self.weights, allow_unused=True, create_graph=create_graph)
        return sum((p * map).sum() for p, map in zip(self.directions, found) if map is not None)

    def difference(self, inputs, target, direction, step):
        '''The central difference along a direction of a target, an input's number or a parameter.'''
        values, parameter = [], target if isinstance(target, torch.Tensor) else torch.zeros(())
        kept = parameter.detach().clone()
        for sign in (1, -1):
            moved = leaves(inputs)
            moved_target = parameter if isinstance(target, torch.Tensor) else moved[target]
            moved_target.data += sign * step * direction
            values.append(self(moved).item())
            parameter.data.copy_(kept)
        return (values[0] - values[1]) / (2 * step), abs(values[0])


@check
def check_double_backward(program, rng):
    '''The gradient of a map, by an input and by a parameter, is what central differences say.'''
    inputs, layers = program.inputs(rng.random()), program.layers(program.inputs())
    composite = rng.choice(DIFFERENTIATED[:None if layers else 3])(rng.choice(layers or [None]), **options(program))
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    projection = Projection(program, composite, relevance_like(output_of(program, inputs), rng), generator)
    probes, parameters = leaves(inputs), dict(program.named_parameters())
    name = rng.choice(list(parameters)) if parameters else None
    targets = [(f'input {index}', index, probe) for index, probe in enumerate(probes)]
    targets += [(name, parameters[name], parameters[name])] if parameters else []
    result = projection(probes, create_graph=True)
    gradients = [None] * len(targets)
    if result.requires_grad:
        gradients = torch.autograd.grad(result, [each for *_, each in targets], allow_unused=True)
    for (what, target, tensor), gradient in zip(targets, gradients):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        actual = 0. if gradient is None else (gradient * direction).sum().item()
        differences, sizes = zip(*(projection.difference(inputs, target, direction, 2e-5 / 2 ** n) for n in range(3)))
        # the differences' own error is the square of the step, 1e-10, and 1e-15 of the value over the step; where
        # they disagree by more, there is a kink between
        scale = max(*map(abs, differences), *sizes, 1e-3)
        if max(differences) - min(differences) < 1e-7 * scale:
            assert abs(actual - differences[-1]) <= 3e-7 * scale + rounding(program) * scale, (
                f'{describe(composite)}: the gradient by {what} is {actual:.8g}, where differences are {differences}'
            )


@check
def check_joint_loss(program, rng):
    '''Output and map in one loss have the sum of both gradients.'''
    inputs, kwargs = program.inputs(rng.random()), options(program)
    if kwargs:
        raise Inapplicable  # the output's gradient leaves out what the canonizer makes constant
    parameters = list(program.parameters())
    if not parameters:
        raise Inapplicable
    composite = rng.choice(DIFFERENTIATED[:3])(None)

    def losses(context):
        values = leaves(inputs)
        output = program(*values)
        found = torch.autograd.grad(output.sum(), values, create_graph=True, allow_unused=True)
        return output, sum((map ** 2).sum() for map in found if map is not None)

    def gradient(loss):
        if not loss.requires_grad:
            return [torch.zeros_like(parameter) for parameter in parameters]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]

    with composite.context(program):
        output, square = losses(composite)
        together = gradient(output.sum() + square)
    with composite.context(program):
        of_map = gradient(losses(composite)[1])
    with Exact():
        output = program(*leaves(inputs))
    of_output = gradient(output.sum())
    expected = [one + other for one, other in zip(of_output, of_map)]
    close(program, together, expected, f'{describe(composite)}, joint loss')


@check
def check_precision(program, rng):
    '''SplitLRP in float32 is that in float64, of inputs of which most are zero as of others.'''
    inputs = [input.float().double() for input in program.inputs(rng.random())]
    if rng.random() < .5:
        inputs = [input.relu() * (input > 1.) for input in inputs]
    if not any(input.any() for input in inputs) or is_close(program, inputs):
        raise Inapplicable
    single = copy.deepcopy(program).float()
    double, stream = copy.deepcopy(single).double(), rng.choice(['positive', 'negative', 'combined'])
    weights = relevance_like(output_of(double, inputs), rng).float()
    composite = SplitLRP(stream=stream, **options(program))
    expected = maps(composite, double, inputs, weights.double())[1]
    actual = maps(composite, single, [input.float() for input in inputs], weights)[1]
    close(program, [map.double() for map in actual], expected, f'{describe(composite)}, stream {stream}, float32', 1e-4)


@check
def check_unchanged(program, rng):
    '''The model is left as it was.'''
    before = state(program)
    values = {name: tensor.clone() for name, tensor in program.state_dict().items()}
    error = None
    for composite in (SplitGrad(**options(program)), SplitLRP()):
        try:
            maps(composite, program, program.inputs(), lambda output: relevance_like(output, rng))
        except NotImplementedError as refused:
            error = refused
    assert state(program) == before, 'the model has changed'
    for name, tensor in program.state_dict().items():
        assert torch.equal(tensor, values[name]), f'{name} has changed'
    if error is not None and not options(program):
        raise error


def state(program):
    '''What must be the same before and after: tensors, hooks, modes, attributes.'''
    return [
        (name, type(module), list(module.__dict__), module.training, {
            key: [id(each) for each in value.values()] if isinstance(value, dict) else id(value)
            for key, value in module.__dict__.items() if not isinstance(value, (bool, int, float, str, tuple))
        }) for name, module in program.named_modules()
    ]


@check
def check_two_maps(program, rng):
    '''Two maps of one forward pass are those of two passes.'''
    inputs, kwargs = program.inputs(rng.random()), options(program)
    create = rng.choice(BATCH_COMPOSITES[:3])
    composite = create(**kwargs)
    weights = [relevance_like(output_of(program, inputs), rng) for _ in range(2)]
    values = leaves(inputs)
    with composite.context(program):
        output = program(*values)
        found = [torch.autograd.grad(output, values, each, retain_graph=True, allow_unused=True) for each in weights]
    for both, each in zip(found, weights):
        expected = maps(create(**kwargs), program, inputs, each)[1]
        both = [torch.zeros_like(value) if map is None else map for value, map in zip(values, both)]
        close(program, both, expected, f'{describe(composite)}, second map')
