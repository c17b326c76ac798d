'''The families of operations: each function adds a step, or a few, to a program that grows.'''
import functools
import itertools
import math
import re

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from .programs import Rejected, affine, compiled, memory, route


def shuffles_channels():
    '''Whether torch has a derivative of channel_shuffle, which 2.4 has not.'''
    try:
        torch.autograd.grad(torch.channel_shuffle(leaf := torch.ones(1, 4, 1, 1, requires_grad=True), 2).sum(), leaf)
    except RuntimeError:
        return False
    return True


SHUFFLE = ['F.channel_shuffle(x, 2)'] if shuffles_channels() else []

FAMILIES = {}


def family(weight=1., bare=True):
    '''Register a family with its weight, and whether it has a place in programs without biases, constants and
    products.'''
    def register(function):
        def add(builder):
            if builder.bare and not bare:
                raise Rejected
            return function(builder)
        FAMILIES[function.__name__] = add, weight
        return function
    return register


def spatial(axes=(1, 2, 3)):
    '''The condition that a value is a batch of channels with a number of further axes.'''
    return lambda value: value.leading and value.ndim - 2 in axes


def broadcastable(value, *shape):
    '''The condition that a constant's shape may be combined with a value's.'''
    try:
        return len(torch.broadcast_shapes(value.shape, shape)) > 0
    except RuntimeError:
        return False


# affine layers

@family(4)
def linear(g):
    x = g.pick(lambda value: value.ndim > 1 and value.axis != value.ndim - 1)
    inputs, outputs = x.shape[-1], g.integer(1, 6)
    weight, bias = g.weight(outputs, inputs, inputs=inputs), g.bias(outputs)
    if g.chance(.4):
        return layer(g, 'linear', nn.Linear(inputs, outputs, bias is not None), x, weight, bias)
    return g.add('linear', f'F.linear(x, w{", b" if bias is not None else ""})', x, literal=affine, w=weight, b=bias)


def layer(g, name, module, x, weight=None, bias=None):
    '''Add a module that is one affine layer, with random parameters or those given.'''
    fill(g, module)
    for parameter, value in ((module.weight, weight), (module.bias, bias)):
        if value is not None:
            parameter.data = value
    return g.add(name, 'm(x)', x, literal=module_affine, m=module)


def fill(g, module):
    '''Random parameters and statistics for a module.'''
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data = g.weight(*tensor.shape, inputs=tensor[0].numel() if tensor.ndim > 1 else 2)
    for each in module.modules():
        if getattr(each, 'running_var', None) is not None:
            each.running_var.data = g.tensor(*each.running_var.shape).abs() + .2


def module_affine(interpreter, step, pair):
    '''The literal form of a module that is one affine layer.'''
    def function(a, weight, bias):
        parameters = {'weight': weight} if step.m.bias is None else {
            'weight': weight, 'bias': torch.zeros_like(step.m.bias) if bias is None else bias
        }
        return torch.func.functional_call(step.m, parameters, a)
    return interpreter.affine(pair, function, step.m.weight, step.m.bias)


def convolution_arguments(g, x):
    '''The arguments of a random convolution of a value: channels, size of the kernel and keywords.'''
    axes, channels = x.ndim - 2, x.shape[1]
    groups = g.choice([1, 1, channels] + [2] * (channels % 2 == 0))
    outputs = groups * g.integer(1, max(4 // groups, 1))
    kernel = tuple(g.integer(1, 3) for _ in range(axes))
    stride = tuple(g.integer(1, 2) for _ in range(axes))
    padding = tuple(g.integer(0, size // 2) for size in kernel)
    dilation = tuple(g.integer(1, 2) for _ in range(axes))
    if g.chance(.2):
        stride, padding = 1, g.choice(['same', 'valid'])
    return outputs, kernel, {'stride': stride, 'padding': padding, 'dilation': dilation, 'groups': groups}


@family(5)
def conv(g):
    x = g.pick(spatial())
    axes, (outputs, kernel, keywords) = x.ndim - 2, convolution_arguments(g, x)
    if g.chance(.5):
        module = getattr(nn, f'Conv{axes}d')(x.shape[1], outputs, kernel, bias=not g.bare and g.chance(.6), **keywords)
        return layer(g, f'conv{axes}d', module, x)
    inputs = x.shape[1] // keywords['groups']
    weight, bias = g.weight(outputs, inputs, *kernel, inputs=inputs * math.prod(kernel)), g.bias(outputs)
    code = f'F.conv{axes}d(x, w, {"b" if bias is not None else "None"}, {arguments(keywords)})'
    return g.add(f'conv{axes}d', code, x, literal=affine, w=weight, b=bias)


def arguments(keywords):
    '''Keywords as code.'''
    return ', '.join(f'{name}={value!r}' for name, value in keywords.items())


@family(2)
def conv_transpose(g):
    x = g.pick(spatial())
    axes, groups = x.ndim - 2, g.choice([1, 1, x.shape[1]])
    stride, dilation = ([g.integer(1, 2) for _ in range(axes)] for _ in range(2))
    keywords = {
        'stride': tuple(stride), 'padding': g.integer(0, 1), 'groups': groups, 'dilation': tuple(dilation),
        'output_padding': tuple(g.integer(0, max(pair) - 1) for pair in zip(stride, dilation)),
    }
    kernel, outputs = [g.integer(1, 3) for _ in range(axes)], g.integer(1, 2)
    if g.chance(.5):
        module = getattr(nn, f'ConvTranspose{axes}d')(x.shape[1], groups * outputs, kernel, bias=not g.bare, **keywords)
        return layer(g, f'conv_transpose{axes}d', module, x)
    weight, bias = g.weight(x.shape[1], outputs, *kernel, inputs=math.prod(kernel)), g.bias(groups * outputs)
    code = f'F.conv_transpose{axes}d(x, w, {"b" if bias is not None else "None"}, {arguments(keywords)})'
    return g.add(f'conv_transpose{axes}d', code, x, literal=affine, w=weight, b=bias)


@family(2, bare=False)
def batch_norm(g):
    x = g.pick(lambda value: value.leading and 2 <= value.ndim <= 5)
    for _ in range(g.choice([1, 1, 1, 2])):
        kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.ndim]
        module = kind(x.shape[1], affine=g.chance(.8))
        fill(g, module)
        name = g.add('batch_norm', 'm(x)', x, literal=lambda i, step, pair: norm(i, step.m, pair), m=module)
        x = g.value(name)
    return name


def norm(interpreter, module, pair):
    '''The literal form of a batch norm.'''
    scale = torch.rsqrt(module.running_var + module.eps)
    scale = scale if module.weight is None else scale * module.weight.detach()
    shift = -module.running_mean * scale + (0 if module.bias is None else module.bias.detach())
    return interpreter.norm(pair, *(each.reshape(1, -1, *(1,) * (pair.plus.ndim - 2)) for each in (scale, shift)))


@family(2, bare=False)
def conv_and_norm(g):
    g.prefer = conv(g)
    return batch_norm(g)


@family(2)
def matmul_right(g):
    '''A constant on the right is a layer's weight; with more axes, the samples are another axis behind it.'''
    x = g.pick(lambda value: value.ndim > 1 and value.axis != value.ndim - 1)
    inputs, outputs = x.shape[-1], g.integer(1, 5)
    leading = g.choice([(), (), *([(g.integer(2, 3),)] * (x.ndim <= 3)), x.shape[:-2] if x.ndim > 3 else ()])
    weight = g.weight(*leading, inputs, outputs, inputs=inputs)
    options = ['x @ w', 'x.matmul(w)', 'torch.matmul(x, w)', 'torch.matmul(x, other=w)']
    options += ['torch.mm(x, w)', 'x.mm(mat2=w)'] if x.ndim == 2 and not leading else []
    return g.add('matmul_right', g.choice(options), x, literal=affine, w=weight)


@family()
def matmul_left(g):
    '''A constant on the left mixes tokens, as attention weights do.'''
    x = g.pick(lambda value: value.ndim > 2 and value.axis != value.ndim - 2)
    leading = g.choice([(), (), (g.integer(2, 3),) if x.shape[0] == 1 else ()])
    weight = g.weight(*leading, g.integer(1, 4), x.shape[-2], inputs=x.shape[-2])
    options = ['w @ x', 'torch.matmul(w, x)'] + ['torch.bmm(w.expand(x.shape[0], -1, -1), x)'] * (x.ndim == 3)
    return g.add('matmul_left', g.choice(options), x, literal=linear_weight, w=weight)


def linear_weight(interpreter, step, pair):
    '''The literal form of a linear operation with a factor that is no layer's weight.'''
    return interpreter.linear(pair, lambda a, w: step.evaluate(a, w=w), step.w)


def product(interpreter, step, first, other=None):
    '''The literal form of a product of pairs, or of a pair with itself.'''
    if other is None:
        return interpreter.multiply(first, first, torch.mul)
    return interpreter.multiply(first, other, step.evaluate)


@family(bare=False)
def matmul_pairs(g):
    x = g.pick(lambda value: value.ndim > 2 and value.axis not in (value.ndim - 1, value.ndim - 2))
    y = g.pick(lambda value: value.shape == x.shape and value.axis == x.axis)
    options = ['x @ y.mT', 'torch.matmul(x.mT, y)'] + ['torch.bmm(x, y.transpose(1, 2))'] * (x.ndim == 3)
    return g.add('matmul_pairs', g.choice(options), x, y, literal=product)


EQUATIONS = [
    ('bc', 'cd->bd'), ('bc', 'cd->db'), ('btc', 'dc->tbd'), ('btc', 'td->bcd'), ('bct', 'ct->bt'), ('bct', 'c->bt'),
    ('bchw', 'dc->bdhw'), ('bchw', 'chd->wbd'), ('bchw', 'cd->bhwd'), ('tbc', 'dc->tbd'), ('cbt', 'cd->dbt'),
]


@family(2)
def einsum(g):
    x = g.pick(lambda value: value.ndim in (2, 3, 4))
    operand, rest = g.choice(
        pair for pair in EQUATIONS if len(pair[0]) == x.ndim and x.axis is not None and pair[0][x.axis] == 'b'
    )
    constant, output = rest.split('->')
    sizes = dict(zip(operand, x.shape))
    shape = [sizes.setdefault(letter, g.integer(1, 4)) for letter in constant]
    weight = g.weight(*shape, inputs=math.prod(sizes[letter] for letter in set(operand) - set(output)))
    if g.chance(.3):
        return g.add('einsum', f'torch.einsum({constant + "," + operand + "->" + output!r}, w, x)', x,
                     literal=linear_weight, w=weight)
    return g.add('einsum', f'torch.einsum({operand + "," + rest!r}, x, w)', x, literal=affine, w=weight)


@family(bare=False)
def einsum_pairs(g):
    x = g.pick(lambda value: value.leading and value.ndim in (2, 3, 4))
    y = g.pick(lambda value: value.shape == x.shape and value.pattern == x.pattern and value.leading)
    equation = g.choice({
        2: ['bi,bj->bij', 'bi,bi->bi', 'bi,bj->ibj'], 3: ['bij,bkj->bik', 'bij,bij->bi', 'bij,bik->jbk'],
        4: ['bchw,bdhw->bcd', 'bchw,bcij->bhi'],
    }[x.ndim])
    return g.add('einsum_pairs', f'torch.einsum({equation!r}, x, y)', x, y, literal=product)


@family(bare=False)
def addmm(g):
    x = g.pick(lambda value: value.leading and value.ndim == 2)
    outputs = g.integer(1, 5)
    code = g.choice(['torch.addmm(b, x, w)', 'torch.addmm(input=b, mat1=x, mat2=w)'])
    weight = g.weight(x.shape[1], outputs, inputs=x.shape[1])
    return g.add('addmm', code, x, literal=without_bias(lambda a, w: a @ w), w=weight, b=g.tensor(outputs))


def without_bias(function):
    '''The literal form of a layer, given by its function of input and weight.'''
    def literal(interpreter, step, pair):
        return interpreter.affine(
            pair, lambda a, w, b: function(a, w) if b is None else function(a, w) + b, step.w, getattr(step, 'b', None)
        )
    return literal


# arithmetic

def constant_for(g, x):
    '''A constant that can be combined with a value: for each channel, for all entries, with more axes than it has.'''
    if g.chance(.3):
        return torch.tensor(round(g.random.uniform(-2, 2), 2), dtype=torch.float64)
    shape = [1 if axis == x.axis or g.chance(.4) else size for axis, size in enumerate(x.shape)]
    if g.chance(.25) and x.ndim < 4:
        shape = [g.integer(2, 3), *shape]
    while shape and shape[0] == 1 and g.chance(.5):
        shape = shape[1:]
    return g.tensor(*shape)


@family(2, bare=False)
def add_constant(g):
    x = g.pick()
    alpha = g.choice([2, -2, .5])
    code, factor, of_constant = g.choice([
        ('x + c', 1, 1), ('c + x', 1, 1), ('x - c', 1, -1), ('c - x', -1, 1),
        (f'torch.add(x, c, alpha={alpha})', 1, alpha), (f'torch.add(c, x, alpha={alpha})', alpha, 1),
        (f'torch.sub(x, c, alpha={alpha})', 1, -alpha),
        (f'torch.sub(c, x, alpha={alpha})', -alpha, 1),
        ('torch.rsub(x, c)', -1, 1), ('x + 1.5', 1, 1.5),
        ('1.5 - x', -1, 1.5), ('x - 2', 1, -2),
    ])

    def literal(interpreter, step, pair):
        constant = of_constant * (step.c if 'c' in step.own else 1)
        return interpreter.linear(pair, lambda a, w: a * w, factor, constant)

    return g.add('add_constant', code, x, literal=literal, c=constant_for(g, x) if 'c' in code.split('(')[-1] else None)


@family(2, bare=False)
def multiply_constant(g):
    x = g.pick()
    code = g.choice(['x * c', 'c * x', 'x / c', 'torch.mul(x, c)', 'x * -2', '0.5 * x', 'x / 2', 'torch.div(x, c)'])
    constant = constant_for(g, x)
    if '/' in code or 'div' in code:
        constant = constant + .3 * torch.where(constant < 0, -1., 1.)
    constant = constant if 'c' in code.replace('torch', '') else None

    def literal(interpreter, step, pair):
        if constant is None:
            return interpreter.linear(pair, lambda a, w: a * w, step.evaluate(torch.ones((), dtype=torch.float64)))
        factor = 1 / step.c if '/' in code or 'div' in code else step.c
        return interpreter.linear(pair, lambda a, w: a * w, factor)

    return g.add('multiply_constant', code, x, literal=literal, c=constant)


@family(3)
def add_pairs(g):
    x = g.pick()
    y = g.pick(lambda value: value.shape == x.shape and value.axis == x.axis and value.pattern == x.pattern)
    code = g.choice([
        'x + y', 'torch.add(x, y)', 'x - y', 'torch.add(x, y, alpha=-2)', 'torch.sub(x, y, alpha=2)',
        'x + y.mean(-1, keepdim=True)', 'x[:, :1] + y', 'x.unsqueeze(0) + torch.stack([y, y])',
    ])
    return g.add('add_pairs', code, x, y, literal=functools.partial(sum_of_pairs, code=code))


def sum_of_pairs(interpreter, step, x, y, code):
    '''The literal forms of the sums of two pairs.'''
    i = interpreter
    if 'mean' in code:
        y = i.linear(y, lambda a: a.mean(-1, keepdim=True))
    elif ':1' in code:
        x = i.route(lambda a: a[:, :1], x)
    elif 'stack' in code:
        x, y = i.route(lambda a: a.unsqueeze(0), x), i.route(lambda a: torch.stack([a, a]), y)
    y = i.negated(y) if 'sub' in code or ' - ' in code else y
    if 'alpha' in code:
        y = i.linear(y, lambda a, w: a * w, 2. if 'sub' in code else -2.)
    return i.add(x, y)


@family(bare=False)
def gate(g):
    x = g.pick()
    y = g.pick(lambda value: value.shape == x.shape and value.axis == x.axis and value.pattern == x.pattern)
    code = g.choice([
        'x * y', 'torch.mul(x, y)', 'x * y.unsqueeze(0)', 'x * x', 'x.square()', 'x ** 2', 'torch.pow(x, 2)',
    ])
    if 'y' not in code:
        return g.add('square', code, x, literal=product)
    return g.add('gate', code, x, y, literal=product)


@family(bare=False)
def squeeze_and_excite(g):
    x = g.pick(spatial((1, 2)))
    axes = tuple(range(2, x.ndim))

    def literal(interpreter, step, pair):
        scale = interpreter.linear(pair, lambda a: a.mean(axes, keepdim=True))
        return interpreter.multiply(pair, interpreter.activation(scale, *HINGES['hardsigmoid']), torch.mul)

    return g.add('squeeze_and_excite', f'x * F.hardsigmoid(x.mean({axes}, keepdim=True))', x, literal=literal)


@family()
def negative(g):
    return g.add('negative', g.choice(['-x', 'torch.neg(x)', 'x.negative()']), g.pick(),
                 literal=lambda interpreter, _, pair: interpreter.negated(pair))


# activations: the constant, the slope and the hinges of each; a hinge has a factor, a knot and a side

HINGES = {
    'relu': (0., 0., [(1., 0., 1)]),
    'abs': (0., 0., [(1., 0., 1), (1., 0., -1)]),
    'relu6': (0., 0., [(1., 0., 1), (-1., 6., 1)]),
    'hardsigmoid': (0., 0., [(1 / 6, -3., 1), (-1 / 6, 3., 1)]),
    'softshrink': (0., 0., [(1., .5, 1), (-1., -.5, -1)]),
    'clamp_min': (-.4, 0., [(1., -.4, 1)]),
    'clamp_max': (.7, 0., [(-1., .7, -1)]),
    'clamp': (-.4, 0., [(1., -.4, 1), (-1., .7, 1)]),
    'hardtanh': (-1., 0., [(1., -1., 1), (-1., 1., 1)]),
    'leaky_relu': (0., .2, [(.8, 0., 1)]),
    'rrelu': (0., .3, [(.7, 0., 1)]),
}
CODES = {
    'relu': ['F.relu(x)', 'x.relu()', 'torch.relu(x)', 'x.clamp(min=0)', 'torch.clamp(x, 0)'],
    'abs': ['x.abs()', 'torch.abs(x)', 'abs(x)'],
    'relu6': ['F.relu6(x)'],
    'hardsigmoid': ['F.hardsigmoid(x)'],
    'softshrink': ['F.softshrink(x)'],
    'clamp_min': ['x.clamp(min=-.4)', 'torch.clamp_min(x, -.4)'],
    'clamp_max': ['x.clamp(max=.7)', 'torch.clamp_max(x, .7)'],
    'clamp': ['x.clamp(-.4, .7)', 'torch.clip(x, -.4, .7)', 'F.hardtanh(x, -.4, .7)'],
    'hardtanh': ['F.hardtanh(x)'],
    'leaky_relu': ['F.leaky_relu(x, .2)'],
    'rrelu': ['F.rrelu(x, .2, .4, False)'],
}
MODULES = {
    'relu': nn.ReLU, 'relu6': nn.ReLU6, 'hardsigmoid': nn.Hardsigmoid, 'softshrink': nn.Softshrink,
    'hardtanh': nn.Hardtanh, 'leaky_relu': functools.partial(nn.LeakyReLU, .2),
    'rrelu': functools.partial(nn.RReLU, .2, .4),
}
IN_PLACE = {
    'relu': ['x.relu_()', 'F.relu(x, inplace=True)', 'F.relu_(x)', 'm(x)'], 'abs': ['x.abs_()'],
    'relu6': ['F.relu6(x, inplace=True)', 'm(x)'], 'hardsigmoid': ['F.hardsigmoid(x, inplace=True)'],
    'clamp_min': ['x.clamp_(min=-.4)', 'x.clamp_min_(-.4)'], 'clamp': ['x.clamp_(-.4, .7)', 'F.hardtanh_(x, -.4, .7)'],
    'hardtanh': ['F.hardtanh_(x)', 'm(x)'],
    'leaky_relu': ['F.leaky_relu_(x, .2)', 'm(x)'],
}


def activate(interpreter, step, pair):
    '''The literal form of an activation.'''
    slope = derivative(step, pair)
    if isinstance(getattr(step, 'm', None), nn.ReLU) or re.search(r'\brelu_?\(', step.code):
        return interpreter.relu(pair, slope)
    return interpreter.activation(pair, *HINGES[step.family.removeprefix('in_place_')], slope)


def derivative(step, pair):
    '''Torch's derivative of an activation at the original values, which tells its convention at a kink.'''
    values = pair.difference.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(step.evaluate(values.clone()).sum(), values)[0]


@family(6)
def relu(g):
    if g.chance(.4):
        return g.add('relu', 'm(x)', g.pick(), literal=activate, m=nn.ReLU())
    return g.add('relu', g.choice(CODES['relu']), g.pick(), literal=activate)


@family()
def rectified(g):
    '''ReLU of what is a ReLU's output already, or, for one image, of what another one has written to a view.'''
    x = g.pick(lambda value: value.ndim > 1 and value.name.startswith('v'))
    rows = [code for code in ('x.permute(0, *range(2, x.ndim), 1).flatten(0, -2)', 'x.flatten(0, 1)', 'x.mT.flatten(1)')
            if memory(compiled(code)(g.runs[0][x.name])) != memory(g.runs[0][x.name])]
    name = g.choice(['rectify', 'relu', 'relu'])
    if name == 'rectify':
        return g.add(name, f'rectify(x, {g.choice(rows)})', x, literal=lambda i, step, pair: i.relu(
            pair, derivative(step, pair)
        ))
    first = g.value(relu(g))
    code = g.choice(['x', *views(g, first), *copies(g, first)])
    moved = first if code == 'x' else g.value(g.add(routing_name(code), code, first, literal=route))
    return g.add('relu', 'torch.relu(x)', moved, literal=activate)


@family(4, bare=False)
def piecewise_linear(g):
    kind = g.choice(CODES)
    if kind in MODULES and g.chance(.4):
        return g.add(kind, 'm(x)', g.pick(), literal=activate, m=MODULES[kind]())
    return g.add(kind, g.choice(CODES[kind]), g.pick(), literal=activate)


@family()
def prelu(g):
    x = g.pick(lambda value: value.ndim > 1 and value.leading)
    slope = g.tensor(g.choice([1, x.shape[1]]), scale=.5)

    def literal(interpreter, step, pair):
        slope = step.w if 'w' in step.own else step.m.weight
        slope = slope.detach().reshape(1, -1, *(1,) * (pair.plus.ndim - 2))
        return interpreter.activation(pair, 0., slope, [(1 - slope, 0., 1)], derivative(step, pair))

    if g.chance(.5):
        return g.add('prelu', 'F.prelu(x, w)', x, literal=literal, w=slope)
    module = nn.PReLU(len(slope))
    module.weight.data = slope
    return g.add('prelu', 'm(x)', x, literal=literal, m=module)


@family(bare=False)
def hardswish(g):
    def literal(interpreter, step, pair):
        return interpreter.multiply(pair, interpreter.activation(pair, *HINGES['hardsigmoid']), torch.mul)
    return g.add('hardswish', 'F.hardswish(x)', g.pick(), literal=literal)


# maxima

def window_places(sizes, geometry):
    '''The flat places of the entries of each window, -1 outside of the input; the geometry of each axis is a list of
    windows, each a list of places.'''
    rows = []
    for window in itertools.product(*geometry):
        entries = itertools.product(*window)
        rows.append([
            sum(place * math.prod(sizes[axis + 1:]) for axis, place in enumerate(entry))
            if all(0 <= place < size for place, size in zip(entry, sizes)) else -1 for entry in entries
        ])
    longest = max(map(len, rows))
    places = torch.tensor([row + [-1] * (longest - len(row)) for row in rows])
    return places.reshape(*(len(windows) for windows in geometry), longest)


def pooled(interpreter, pair, axes, geometry):
    '''The literal form of max-pooling over windows, of which torch takes the first of equal entries.'''
    places = window_places(pair.plus.shape[-axes:], geometry)
    return interpreter.maximum(
        pair, lambda stream: stream.flatten(-axes)[..., places.clamp(min=0)], places >= 0, shares=False
    )


@family(3)
def max_pool(g):
    x = g.pick(spatial())
    axes = x.ndim - 2
    kernel = tuple(g.integer(1, 3) for _ in range(axes))
    stride, dilation = (tuple(g.integer(1, 2) for _ in range(axes)) for _ in range(2))
    keywords = {
        'kernel_size': kernel, 'stride': stride, 'padding': tuple(g.integer(0, size // 2) for size in kernel),
        'dilation': dilation, 'ceil_mode': g.chance(.3),
    }
    code = g.choice([
        'm(x)', f'F.max_pool{axes}d(x, {arguments(keywords)})', f'torch.max_pool{axes}d(x, {arguments(keywords)})',
        f'F.max_pool{axes}d(x, {arguments(keywords)}, return_indices=True)[0]',
    ])

    def literal(interpreter, step, pair):
        outputs = step.evaluate(pair.difference.detach()).shape[2:]
        geometry = [
            [[window * step - pad + width * place for place in range(size)] for window in range(count)]
            for count, size, step, pad, width in zip(outputs, kernel, stride, keywords['padding'], dilation)
        ]
        return pooled(interpreter, pair, axes, geometry)

    module = getattr(nn, f'MaxPool{axes}d')(**keywords) if code == 'm(x)' else None
    return g.add(f'max_pool{axes}d', code, x, literal=literal, m=module)


@family()
def adaptive_max_pool(g):
    x = g.pick(spatial())
    axes = x.ndim - 2
    outputs = [g.integer(1, min(size, 4)) for size in x.shape[2:]]

    def literal(interpreter, step, pair):
        geometry = [
            [list(range(n * size // count, -(-(n + 1) * size // count))) for n in range(count)]
            for count, size in zip(outputs, pair.plus.shape[2:])
        ]
        return pooled(interpreter, pair, axes, geometry)

    code = f'F.adaptive_max_pool{axes}d(x, {outputs})'
    module = getattr(nn, f'AdaptiveMaxPool{axes}d')(outputs) if g.chance(.3) else None
    return g.add('adaptive_max_pool', 'm(x)' if module is not None else code, x, literal=literal, m=module)


def over_axes(interpreter, pair, axes, keepdim, sign=1, shares=True):
    '''The literal form of a maximum or minimum over axes.'''
    axes = sorted(axis % pair.plus.ndim for axis in axes)
    rest = [axis for axis in range(pair.plus.ndim) if axis not in axes]
    pair = pair if sign > 0 else interpreter.negated(pair)
    output = interpreter.maximum(pair, lambda stream: stream.permute(*rest, *axes).flatten(len(rest)), shares=shares)
    output = interpreter.activated(output, output.plus, output.minus)
    if keepdim:
        for axis in axes:
            output = interpreter.route(lambda stream, axis=axis: stream.unsqueeze(axis), output)
    return output if sign > 0 else interpreter.negated(output)


@family(2)
def extremum(g):
    x = g.pick(lambda value: value.ndim > 1 and value.axis is not None)
    axes = g.random.sample(x.free_axes(), g.integer(1, min(2, x.ndim - 1)))
    keepdim, name = g.chance(.3), g.choice(['max', 'min'])
    if g.chance(.5):
        code = f'x.a{name}({tuple(axes)}, keepdim={keepdim})'
    else:
        axes = axes[:1]
        code = g.choice([
            f'x.{name}({axes[0]}, {keepdim})[0]', f'torch.{name}(x, dim={axes[0]}, keepdim={keepdim}).values',
        ])
    sign = 1 if name == 'max' else -1
    return g.add(f'a{name}', code, x, literal=lambda i, step, pair: over_axes(
        i, pair, axes, keepdim, sign, shares='(x' not in code and '].' not in code and '.a' in code
    ))


@family()
def maximum(g):
    x = g.pick()
    y = g.pick(lambda value: value.shape == x.shape and value.axis == x.axis and value.pattern == x.pattern)
    name, constant = g.choice(['maximum', 'minimum', 'max', 'min']), None
    if g.bare or g.chance(.6):
        code, inputs = f'torch.{name}(x, y)', (x, y)
    else:
        code, inputs, constant = g.choice([f'torch.{name}(x, c)', f'torch.{name}(c, x)']), (x,), constant_for(g, x)

    def literal(interpreter, step, first, other=None):
        other = interpreter.constant(step.c) if other is None else other
        shape = torch.broadcast_shapes(first.plus.shape, other.plus.shape)
        both = interpreter.route(lambda a, b: torch.stack([a.expand(shape), b.expand(shape)], -1), first, other)
        return over_axes(interpreter, both, [-1], False, 1 if 'max' in name else -1)

    return g.add('maximum', code, *inputs, literal=literal, c=constant)


@family()
def maxout(g):
    x = g.pick(lambda value: value.leading and value.ndim > 1 and value.shape[1] % 2 == 0)
    code = g.choice([
        'x.unflatten(1, (-1, 2)).amax(2)', 'torch.max(x[:, ::2], x[:, 1::2])', 'x.unflatten(1, (2, -1)).max(1).values',
        'torch.stack([x[:, ::2], x[:, 1::2]]).amax(0)', 'torch.stack([x[:, ::2], x[:, 1::2]]).max(0).values',
    ])
    kept, axis = ('(2, -1)', 1) if '(2, -1)' in code else ('(-1, 2)', 2)

    def literal(interpreter, step, pair):
        split = interpreter.route(lambda a: a.unflatten(1, eval(kept)), pair)
        return over_axes(interpreter, split, [axis], False, shares='.values' not in code)

    return g.add('maxout', code, x, literal=literal)


# averages and sums

def positive(interpreter, step, pair):
    '''The literal form of a linear operation without negative coefficients.'''
    return interpreter.linear(pair, step.evaluate)


@family(3)
def avg_pool(g):
    x = g.pick(spatial())
    axes = x.ndim - 2
    if g.chance(.3):
        code = f'F.adaptive_avg_pool{axes}d(x, {g.choice([1, 2, [2] * axes])})'
        return g.add('adaptive_avg_pool', code, x, literal=positive)
    kernel = tuple(g.integer(1, 3) for _ in range(axes))
    keywords = {
        'kernel_size': kernel, 'stride': tuple(g.integer(1, 2) for _ in range(axes)),
        'padding': tuple(g.integer(0, size // 2) for size in kernel), 'ceil_mode': g.chance(.3),
        'count_include_pad': g.chance(.5),
    }
    if axes > 1 and g.chance(.3):
        keywords['divisor_override'] = g.integer(1, 5)
    if g.chance(.3):
        return g.add('avg_pool', 'm(x)', x, literal=positive, m=getattr(nn, f'AvgPool{axes}d')(**keywords))
    return g.add('avg_pool', f'F.avg_pool{axes}d(x, {arguments(keywords)})', x, literal=positive)


@family(2)
def reduction(g):
    x = g.pick(lambda value: value.ndim > 1 and value.axis is not None)
    axes = tuple(g.random.sample(x.free_axes(), g.integer(1, x.ndim - 1)))
    code = g.choice([
        f'x.mean({axes})', f'torch.mean(x, dim={axes}, keepdim=True)', f'x.sum({axes[0]})',
        f'x.sum({axes}, keepdim=True)', f'x.cumsum({axes[0]})', f'torch.sum(x, dim={axes[0]})', f'x.mean({axes[0]})',
    ])
    return g.add('cumsum' if 'cumsum' in code else 'reduction', code, x, literal=positive)


@family()
def interpolate(g):
    x = g.pick(spatial())
    linear_mode = {3: 'linear', 4: 'bilinear', 5: 'trilinear'}[x.ndim]
    mode, size = g.choice(['nearest', 'area', linear_mode]), [g.integer(1, 6) for _ in x.shape[2:]]
    where = g.choice([f'size={size}', 'scale_factor=2'])
    align = ', align_corners=True' if mode == linear_mode and g.chance(.5) else ''
    return g.add('interpolate', f'F.interpolate(x, {where}, mode={mode!r}{align})', x, literal=positive)


# what only moves values

def views(g, x):
    '''Expressions of a value that are views of it.'''
    axis, other = g.integer(0, x.ndim - 1), g.integer(0, x.ndim - 1)
    size, before, last = x.shape[axis], ':, ' * axis, g.integer(0, x.shape[-1] - 1)
    start = g.integer(0, size - 1)
    options = [
        f'x.permute({g.random.sample(range(x.ndim), x.ndim)})', f'x.transpose({axis}, {other})', 'x.mT', 'x.view_as(x)',
        f'x.movedim({axis}, {other})', f'x.swapaxes({axis}, {other})', f'x.unsqueeze({axis})', 'x[..., None]',
        f'x.narrow({axis}, {start}, {g.integer(1, size - start)})', f'x.select({axis}, {start})', f'x[{before}::2]',
        f'x[{before}{start}:]', 'x[:, None]', f'x[..., {last}]', f'x.chunk(2, {axis})[0]', f'x.unbind({axis})[{start}]',
        f'x.split({g.integer(1, size)}, {axis})[-1]', f'x.tensor_split(2, {axis})[0]', 'x.view(x.shape[0], -1)',
        'x.view(size=(x.shape[0], -1))', 'x.flatten(1)', 'x.flatten(0, 1)', f'x.flatten({axis})', f'x.squeeze({axis})',
    ]
    if x.ndim > 2:
        options += ['x.diagonal(0, -2, -1)', 'x.permute(0, *range(2, x.ndim), 1).flatten(0, -2)', 'x.flatten(-2)']
    options += ['x.T', 'x.t()'] if x.ndim == 2 else []
    options += [f'x.unflatten({axis}, (2, -1))'] if size % 2 == 0 else []
    return options


def copies(g, x):
    '''Expressions of a value that move its entries elsewhere.'''
    axis, other = g.integer(0, x.ndim - 1), g.integer(0, x.ndim - 1)
    size, count, before = x.shape[axis], g.integer(2, 3), ':, ' * axis
    index, ones = [g.integer(0, size - 1) for _ in range(g.integer(1, 3))], ', 1' * x.ndim
    zeros = f'torch.zeros_like(x.narrow({axis}, 0, 1), dtype=torch.long)'
    options = [
        f'x.repeat({count}{ones})', f'x.tile({count})', f'x.repeat_interleave({count}, {axis})', f'x.flip({axis})',
        f'x.roll(1, {axis})', f'x.expand({count}, *x.shape)', f'torch.broadcast_to(x, ({count}, *x.shape))',
        f'x.unsqueeze({axis}).expand(*x.shape[:{axis}], {count}, *x.shape[{axis}:])', f'x[{before}{index}]',
        f'x.index_select({axis}, torch.tensor({index}, device=x.device))', f'x.rot90(1, ({axis}, {other}))',
        f'x.gather({axis}, {zeros})', f'x.unfold({axis}, {g.integer(1, min(size, 2))}, 1)',
        f'torch.cat(x.chunk(2, {axis})[::-1], {axis})',
        f'torch.stack(x.unbind({axis})[::-1], {other})', 'F.dropout(x, .5, False)', 'x.contiguous()', 'x.clone()',
        'x.reshape(x.shape[0], -1)', 'x.reshape(-1, *x.shape[2:])', 'x.ravel().reshape(x.shape)', 'torch.atleast_3d(x)',
        f'x.take_along_dim({zeros}, {axis})', f'x.permute({g.random.sample(range(x.ndim), x.ndim)}).contiguous()',
    ]
    if x.ndim > 2:
        rows = [g.integer(0, x.shape[-1] - 1) for _ in range(2)]
        columns = [g.integer(0, x.shape[1] - 1) for _ in range(2)]
        options += [f'x[..., {rows}]', f'x[:, {columns}, ..., {rows}]']
        options += [f'x[:, {columns}, :, {rows}]'] * (x.ndim == 4)
    if x.ndim == 4:
        options += [
            'x.contiguous(memory_format=torch.channels_last)', 'x.to(memory_format=torch.channels_last)',
            'F.pixel_shuffle(x, 2)', 'F.pixel_unshuffle(x, 2)', *SHUFFLE
        ] + ['F.unfold(x, 2, padding=1)'] * x.leading
    return options


def routing_name(code):
    '''The function that an expression is about.'''
    found = re.search(r'(?:x|F|torch)\.(\w+)\(?', code)
    return 'getitem' if code.startswith('x[') or found is None else found[1]


@family(4)
def view(g):
    x = g.pick(lambda value: value.ndim > 1)
    code = g.choice(views(g, x))
    return g.add(routing_name(code), code, x, literal=route)


@family(4)
def copy(g):
    x = g.pick(lambda value: value.ndim > 1)
    code = g.choice(copies(g, x))
    return g.add(routing_name(code), code, x, literal=route)


@family(1.5)
def move_batch(g):
    '''Move the axis of the samples, or merge it with another one.'''
    x = g.pick(lambda value: value.axis is not None and value.ndim > 1)
    options = [f'x.movedim({x.axis}, {g.choice(x.free_axes())})', f'x.movedim({x.axis}, 0)']
    if x.axis + 1 < x.ndim:
        options += [f'x.flatten({x.axis}, {x.axis + 1})', f'x.transpose({x.axis}, {x.axis + 1}).contiguous()']
    if x.axis == 1:
        options += ['x.reshape(-1, *x.shape[2:])']
        options += ['x.reshape(x.shape[0] * x.shape[1], *x.shape[2:-1], -1, x.shape[-1])']
        options += ['x.reshape(-1, x.shape[1], x.shape[-1])'] * (x.ndim == 4)
    if x.leading and len(x.pattern) > g.program.batch:
        count = len(x.pattern) // g.program.batch
        options += [f'x.unflatten(0, ({count}, -1))', f'x.unflatten(0, (-1, {count}))'] * 3
    code = g.choice(options)
    return g.add(routing_name(code), code, x, literal=route)


@family(1.5)
def pad(g):
    x = g.pick(lambda value: value.ndim > 1 and value.axis is not None)
    mode = g.choice(['constant', 'constant', 'reflect', 'replicate', 'circular'])
    axes = g.integer(1, min(x.ndim - 1, 2)) if mode == 'constant' else x.ndim - 2
    edges = [g.integer(0, 2 if mode == 'constant' else 1) for _ in range(2 * axes)]
    if mode == 'constant' and not g.bare and g.chance(.4):
        value = round(g.random.uniform(-1, 1), 2)

        def literal(interpreter, step, pair):
            plus, minus = F.pad(pair.plus, edges, value=max(value, 0.)), F.pad(pair.minus, edges, value=max(-value, 0.))
            return pair.like(plus, minus)

        return g.add('pad', f'F.pad(x, {edges}, value={value})', x, literal=literal)
    return g.add('pad', f'F.pad(x, {edges}, mode={mode!r})', x, literal=route)


@family(2)
def join(g):
    x = g.pick(lambda value: value.ndim > 1)
    dim = g.integer(0, x.ndim - 1)
    if not g.bare and g.chance(.3) and x.axis is not None:
        constant = g.tensor(*(1 if axis == x.axis else size for axis, size in enumerate(x.shape)))
        code = g.choice(['torch.cat([x, c.expand(x.shape)], {})', 'torch.stack([c.expand(x.shape), x], {})'])
        return g.add('join_constant', code.format(dim), x, literal=route, c=constant)
    y = g.pick(lambda value: value.shape == x.shape and value.axis == x.axis and value.pattern == x.pattern)
    code = g.choice([
        f'torch.cat([x, y], {dim})', f'torch.cat([x, y], dim={dim - x.ndim})', f'torch.stack([x, y], {dim})',
        f'torch.concat((y, x), {dim})', 'torch.hstack([x, y])', 'torch.vstack([x, y])', 'torch.dstack([x, y])',
        f'torch.cat(tensors=[x, y], dim={dim})',
    ])
    return g.add(code[6:].split('(')[0], code, x, y, literal=route)


# in-place operations, on tensors of which there are views and on views

def apart(g, x, y):
    '''Whether another value is like one, in a memory of its own.'''
    like = y.shape == x.shape and y.axis == x.axis and y.pattern == x.pattern
    return like and memory(g.runs[0][x.name]) != memory(g.runs[0][y.name])


def change(g, x):
    '''Add an operation that changes a value in place.'''
    kind = g.choice(['activation', 'activation', *['factor', 'constant', 'square'] * (not g.bare), 'pair'])
    if kind == 'activation':
        name = 'relu' if g.bare else g.choice(IN_PLACE)
        code = g.choice(IN_PLACE[name])
        module = MODULES[name](inplace=True) if code == 'm(x)' else None
        return g.add(f'in_place_{name}', code, x, literal=activate, changes=True, m=module)
    if kind == 'square':
        return g.add('in_place_square', g.choice(['x.square_()', 'x.pow_(2)']), x, literal=product, changes=True)
    if kind == 'pair':
        y = g.pick(lambda value: apart(g, x, value))
        return g.add('in_place_pair', 'operator.iadd(x, y)', x, y, literal=lambda i, _, x, y: i.add(x, y), changes=True)
    if kind == 'factor':
        return g.add('in_place_factor', g.choice(['x.mul_(-1.5)', 'operator.imul(x, -1.5)']), x, changes=True,
                     literal=lambda i, _, pair: i.linear(pair, lambda a, w: a * w, -1.5))
    return g.add('in_place_constant', g.choice(['x.add_(c)', 'operator.iadd(x, c)']), x, changes=True,
                 literal=lambda i, step, pair: i.linear(pair, lambda a, w: a * w, 1, step.c), c=g.tensor())


@family(3)
def in_place(g):
    return change(g, g.pick(lambda value: value.ndim > 1))


@family(3)
def in_place_on_view(g):
    '''Take views of a value, change one of them or the value itself, and go on with any of them.'''
    x = g.pick(lambda value: value.ndim > 1 and value.name.startswith('v'))
    if x.ndim == 4 and g.chance(.3):
        code = 'x.contiguous(memory_format=torch.channels_last)'
        x = g.value(g.add('contiguous', code, x, literal=route))
    names = [x.name]
    for _ in range(g.integer(1, 2)):
        name = g.choice(names)
        code = g.choice(views(g, g.value(name)))
        names.append(g.add(routing_name(code), code, name, literal=route))
    change(g, g.value(g.choice([names[0], names[-1], names[-1]])))
    g.prefer = g.choice(names)
    return g.prefer


# modules

def reusable(g):
    '''The modules of the program's steps that may be called again, each with its step.'''
    return [step for step in g.program.steps if 'm' in step.own and not step.changes]


@family(1.5)
def shared_module(g):
    '''Call a module once more.'''
    step = g.choice(reusable(g))
    shape = g.runs[0][step.inputs[0]].shape
    x = g.pick(lambda value: value.ndim == len(shape) and value.leading)
    return g.add(f'{step.family}', 'm(x)', x, literal=step.literal, m=step.m)


class Nonnegative(nn.Module):
    '''A parametrization by squares.'''
    def forward(self, weight):
        return weight.square()


class Normalized(nn.Module):
    '''A parametrization by the norm, as a spectral one.'''
    def forward(self, weight):
        return 1.5 * weight / weight.norm()


@family()
def parametrized(g):
    x = g.pick(lambda value: value.leading and value.ndim in (2, 4))
    bias = not g.bare
    module = nn.Linear(x.shape[-1], 3, bias) if x.ndim == 2 else nn.Conv2d(x.shape[1], 3, 1, bias=bias)
    fill(g, module)
    kind = g.choice(['weight_norm', 'nonnegative', 'normalized'])
    if kind == 'weight_norm':
        parametrizations.weight_norm(module)
    else:
        parametrization = {'nonnegative': Nonnegative, 'normalized': Normalized}[kind]()
        parametrize.register_parametrization(module, 'weight', parametrization)
    function = F.linear if x.ndim == 2 else F.conv2d
    return g.add(kind, 'm(x)', x, m=module, literal=lambda interpreter, step, pair: interpreter.affine(
        pair, function, step.m.weight, step.m.bias
    ))


@family(bare=False)
def fused(g):
    x = g.pick(spatial())
    axes = x.ndim - 2
    conv = getattr(nn, f'Conv{axes}d')(x.shape[1], 3, 1)
    norm = getattr(nn, f'BatchNorm{axes}d')(3)
    for module in (conv, norm):
        fill(g, module)
        module.double().eval()
    return g.add('fused', 'm(x)', x, literal=module_affine, m=nn.utils.fuse_conv_bn_eval(conv, norm))


class Block(nn.Module):
    '''A residual block: a module of modules, with a ReLU that is used twice and works in place.'''
    def __init__(self, channels, inplace):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace),
            nn.Conv2d(channels, channels, 1),
        )
        self.relu = self.body[2]

    def forward(self, x):
        out = self.body(x)
        out += x
        return self.relu(out)


@family(1.5, bare=False)
def block(g):
    x = g.pick(spatial((2,)))
    module = Block(x.shape[1], g.chance(.5))
    fill(g, module)

    def literal(interpreter, step, pair):
        first, batch_norm, _, second = step.m.body
        out = interpreter.affine(pair, lambda a, w, b: F.conv2d(a, w, b, padding=1), first.weight)
        out = interpreter.relu(norm(interpreter, batch_norm, out))
        out = interpreter.affine(out, F.conv2d, second.weight, second.bias)
        return interpreter.relu(interpreter.add(out, pair))

    return g.add('block', 'm(x)', x, literal=literal, m=module)


@family()
def attention(g):
    x = g.pick(lambda value: value.leading and value.ndim == 3)
    size = x.shape[2]
    if size % 2 == 0 and not g.bare and g.chance(.4):
        return multi_head(g, x)
    code = g.choice(['attend(x, *w)', 'attend_fused(x, *w)'])

    def literal(interpreter, step, pair):
        query, key = (pair.difference.detach() @ weight.detach() for weight in step.w[:2])
        weights = torch.softmax(query @ key.mT * (1 if code[6] == '(' else size ** -.5), -1)
        value = interpreter.affine(pair, lambda a, w, b: a @ w, step.w[2])
        return interpreter.linear(value, lambda a: weights @ a)

    return g.add('attention', code, x, literal=literal, w=g.weight(3, size, size, inputs=size))


def multi_head(g, x):
    '''A module of torch, with a mask or without.'''
    tokens, size = x.shape[1:]
    module = nn.MultiheadAttention(size, 2, batch_first=True, dropout=.1)
    fill(g, module)
    mask = torch.eye(tokens, dtype=torch.bool).roll(1, 1) if tokens > 1 and g.chance(.5) else None
    mask_code = 'None' if mask is None else 'torch.eye(x.shape[1], dtype=torch.bool, device=x.device).roll(1, 1)'
    code = f'm(x, x, x, need_weights={g.chance(.5)}, attn_mask={mask_code})[0]'

    def literal(interpreter, step, pair):
        weights, biases = (tensor.detach().chunk(3) for tensor in (step.m.in_proj_weight, step.m.in_proj_bias))
        query, key = (
            F.linear(pair.difference.detach(), *each).unflatten(-1, (2, -1)).transpose(1, 2)
            for each in list(zip(weights, biases))[:2]
        )
        logits = query @ key.mT * (size // 2) ** -.5
        if mask is not None:
            logits = logits.masked_fill(mask.to(logits.device), -torch.inf)
        attended = torch.softmax(logits, -1)
        value = interpreter.affine(pair, F.linear, weights[2], biases[2])
        heads = interpreter.route(lambda a: a.unflatten(-1, (2, -1)).transpose(1, 2), value)
        mixed = interpreter.linear(heads, lambda a: attended @ a)
        mixed = interpreter.route(lambda a: a.transpose(1, 2).flatten(2), mixed)
        output = interpreter.affine(mixed, F.linear, step.m.out_proj.weight, step.m.out_proj.bias)
        return interpreter.route(lambda a: a, output)  # torch moves axes, behind which no batch norm is merged

    return g.add('multi_head_attention', code, x, literal=literal, m=module)


@family(bare=False)
def layer_norm(g):
    x = g.pick(lambda value: value.ndim > 1 and value.axis != value.ndim - 1 and value.shape[-1] > 2)
    size = x.shape[-1]
    own = {'w': g.tensor(size), 'b': g.tensor(size)} if g.chance(.7) else {}

    def literal(interpreter, step, pair):
        d = pair.difference.detach()
        scale = torch.rsqrt(d.var(-1, unbiased=False, keepdim=True) + 1e-5).unsqueeze(-1)
        scale = scale * (step.w.detach()[:, None] if own else 1)
        matrix = (torch.eye(size, dtype=d.dtype, device=d.device) - 1 / size) * scale
        return interpreter.affine(
            pair, lambda a, w, b: (w @ a.unsqueeze(-1)).squeeze(-1) + (0 if b is None else b), matrix,
            step.b if own else None
        )

    code = f'F.layer_norm(x, ({size},){", w, b" if own else ""})'
    return g.add('layer_norm', code, x, literal=literal, **own)


@family(bare=False)
def group_norm(g):
    x = g.pick(lambda value: value.leading and value.ndim > 2 and math.prod(value.shape[1:]) > 2)
    channels = x.shape[1]
    groups = g.choice([count for count in range(1, channels + 1) if channels % count == 0])
    size = math.prod(x.shape[1:]) // groups
    own = {'w': g.tensor(channels), 'b': g.tensor(channels)} if g.chance(.7) else {}

    def literal(interpreter, step, pair):
        rows = pair.difference.detach().reshape(len(pair.plus), groups, size)
        scale = torch.rsqrt(rows.var(-1, unbiased=False) + 1e-5)[..., None, None]
        wide = [getattr(step, name).detach().reshape(-1, *(1,) * (x.ndim - 2)).expand(x.shape[1:]) for name in own]
        weight = wide[0].reshape(groups, size, 1) if own else 1
        matrix = (torch.eye(size, dtype=rows.dtype, device=rows.device) - 1 / size) * scale * weight
        return interpreter.affine(
            pair, lambda a, w, b: (w @ a.reshape(len(a), groups, size, 1)).reshape(a.shape) + (0 if b is None else b),
            matrix, wide[1] if own else None
        )

    if groups == channels and size > 1 and g.chance(.5):
        code = f'F.instance_norm(x{", weight=w, bias=b" if own else ""})'
    else:
        code = f'F.group_norm(x, {groups}{", w, b" if own else ""})'
    return g.add('group_norm', code, x, literal=literal, **own)


@family(bare=False)
def rms_norm(g):
    x = g.pick(lambda value: value.ndim > 1 and value.axis != value.ndim - 1)

    def literal(interpreter, step, pair):
        scale = torch.rsqrt(pair.difference.detach().square().mean(-1, keepdim=True) + 1e-3)
        return interpreter.affine(pair, lambda a, w, b: a * w, scale * step.w.detach())

    return g.add('rms_norm', 'F.rms_norm(x, w.shape, w, 1e-3)', x, literal=literal, w=g.tensor(x.shape[-1]))


@family(bare=False)
def quotient(g):
    x = g.pick(lambda value: value.ndim > 1 and value.axis != value.ndim - 1)
    code = g.choice([
        'x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1)', 'x.div(1 + torch.std(x, -1, False, True))'
    ])

    def literal(interpreter, step, pair):
        d = pair.difference.detach()
        size = d.std(-1, False, keepdim=True) if 'std' in code else d.norm(dim=-1, keepdim=True)
        return interpreter.linear(pair, lambda a, w: a * w, 1 / (size + 1))

    return g.add('quotient', code, x, literal=literal)


@family(bare=False)
def statistic(g):
    '''A standard deviation or a norm as a feature beside means, or a root beside what it is of.'''
    x = g.pick(lambda value: value.ndim > 1 and value.axis != value.ndim - 1 and value.shape[-1] > 1)
    code = g.choice([
        'torch.cat([x.mean(-1, True), x.std(-1, correction=0, keepdim=True)], -1)',
        'torch.cat([x.mean(-1, True), x.norm(dim=-1, keepdim=True)], -1)',
        'torch.cat([x, (x.square() + .1).sqrt()], -1)',
    ])

    def literal(interpreter, step, pair):
        d = pair.difference.detach()
        if 'sqrt' in code:
            size = interpreter.multiply(pair, pair, torch.mul)
            size = interpreter.linear(size, lambda a, w: a * w, 1., .1)
            root = interpreter.tangent(size, torch.sqrt, .5 / (d.square() + .1).sqrt())
            return interpreter.route(lambda *streams: torch.cat(streams, -1), pair, root)
        centered = d - d.mean(-1, True) if 'std' in code else d
        value = step.evaluate(d)[..., 1:]
        weights = centered / (value * (d.shape[-1] if 'std' in code else 1))
        is_rounding = value <= 1e-12 * d.abs().amax(-1, keepdim=True)  # what is left of values that are equal
        interpreter.tied |= bool((is_rounding & (value > 0)).any())
        weights = torch.where(is_rounding, 0., weights)
        mean = interpreter.linear(pair, lambda a: a.mean(-1, True))
        return interpreter.route(lambda *streams: torch.cat(streams, -1), mean, interpreter.linear(
            pair, lambda a, w: (a * w).sum(-1, True), weights
        ))

    return g.add('statistic', code, x, literal=literal)


@family()
def bicubic(g):
    # of sides of length one, torch's own antialiasing is wrong in some strides
    x = g.pick(lambda value: spatial((2,))(value) and min(value.shape[1:]) > 1)
    size, sides = [g.integer(2, 5), g.integer(2, 5)], x.shape[2:]
    code = f'F.interpolate(x, {size}, mode="bicubic", antialias={g.chance(.5)})'

    def literal(interpreter, step, pair):
        area = math.prod(sides)
        pixels = torch.eye(area, dtype=torch.float64, device=pair.plus.device).reshape(1, area, *sides).contiguous()
        matrix = step.evaluate(pixels)[0].flatten(1)
        return interpreter.linear(pair, lambda a, w: (a.flatten(2) @ w).unflatten(2, size), matrix)

    return g.add('bicubic', code, x, literal=literal)


@family(.5)
def patches(g):
    x = g.pick(spatial((2,)))
    return g.add('fold', 'F.fold(F.unfold(x, 2, padding=1), x.shape[2:], 2, padding=1)', x, literal=positive)


@family(.5, bare=False)
def addcmul(g):
    x = g.pick(lambda value: value.axis is not None)
    y = g.pick(lambda value: value.shape == x.shape and value.axis == x.axis and value.pattern == x.pattern)
    return g.add('addcmul', 'torch.addcmul(x, x, y)', x, y, literal=lambda i, _, x, y: i.add(
        x, i.multiply(x, y, torch.mul)
    ))


# choices, orders, and what is rarely used

@family(.5, bare=False)
def masked(g):
    x = g.pick(lambda value: value.axis is not None)
    constant = g.tensor(*(1 if axis == x.axis else size for axis, size in enumerate(x.shape)))
    code = g.choice([
        'torch.where(c > 0, x, 0.)', 'x.masked_fill(c > 0, 0.)', 'torch.where(c > 0, x, torch.zeros_like(x))',
    ])
    name = 'where' if 'where' in code else 'masked_fill'
    return g.add(name, code, x, c=constant, literal=lambda i, step, pair: i.route(
        lambda stream: step.evaluate(stream, c=step.c.detach()), pair
    ))


@family(.5)
def ordered(g):
    x = g.pick(lambda value: value.ndim > 1 and value.axis != value.ndim - 1)
    name, call, arguments = g.choice([('sort', 'x.sort', '-1'), ('sort', 'torch.sort', 'x, descending=True'),
                                      ('topk', 'x.topk', '1, -1')])

    def literal(interpreter, step, pair):
        places = compiled(f'{call}({arguments}).indices')(pair.difference.detach())
        return interpreter.route(lambda stream: stream.gather(-1, places), pair)

    return g.add(name, f'{call}({arguments}).values', x, literal=literal)


@family(.5)
def rare_products(g):
    x = g.pick(lambda value: value.ndim == 2 and value.leading)
    code = g.choice(['torch.tensordot(x, w, 1)', 'x.mv(w[:, 0])', 'w.T @ x.T', 'torch.matmul(x, w[:, 0])'])
    transposed = code == 'w.T @ x.T'
    weight = g.weight(x.shape[1], 3, inputs=x.shape[1])
    name = {'w': 'matmul_left', 'x': 'mv'}.get(code[0], code[6:].split('(')[0])
    return g.add(name, code, x, w=weight, literal=linear_weight if transposed else affine)


@family(.5, bare=False)
def set_item(g):
    x = g.pick(lambda value: value.ndim > 1 and value.axis != 1 and value.name.startswith('v'))
    y = g.pick(lambda value: apart(g, x, value))
    code = 'assign(x, (slice(None), 0), y[:, 0])'
    return g.add('setitem', code, x, y, changes=True, literal=lambda i, _, x, y: i.route(
        lambda a, b: torch.cat([b[:, :1], a[:, 1:]], 1), x, y
    ))


def index_along(g, count, size):
    '''The code of random places along an axis.'''
    return f'torch.tensor({[g.integer(0, size - 1) for _ in range(count)]}, device=x.device)'


@family()
def scatter(g):
    '''Entries that are written to places of zeros.'''
    x = g.pick(lambda value: value.ndim > 1)
    dim = g.choice(axis for axis in range(x.ndim) if axis != x.axis)
    size = x.shape[dim] + g.integer(0, 2)
    shape = [size if axis == dim else length for axis, length in enumerate(x.shape)]
    order = g.random.sample(range(size), x.shape[dim])
    along = [-1 if axis == dim else 1 for axis in range(x.ndim)]
    index, zeros = f'torch.tensor({order}, device=x.device)', f'x.new_zeros({shape})'
    places = f'{index}.reshape({along}).expand(x.shape)'
    name, code = g.choice([
        ('index_copy', f'{zeros}.index_copy({dim}, {index}, x)'), ('scatter', f'{zeros}.scatter({dim}, {places}, x)'),
        ('index_copy_', f'{zeros}.index_copy_({dim}, {index}, x)'), ('copy_', 'x.new_zeros(x.shape).copy_(x)'),
        ('scatter_', f'{zeros}.scatter_({dim}, {places}, x)'),
        *[('tril', 'x.tril()'), ('triu', 'torch.triu(x)')] * (x.axis is not None and x.axis < x.ndim - 2),
        ('setitem', f'assign({zeros}, ({"slice(None), " * dim}slice(0, {x.shape[dim]}),), x)'),
        ('setitem', f'assign({zeros}, ({"slice(None), " * dim}{index},), x)'),
        ('index_fill', f'x.index_fill({dim}, {index}[:1] % {x.shape[dim]}, 0.)'),
    ])
    return g.add(name, code, x, literal=route)


@family()
def sum_at_places(g):
    '''Entries that are added up at places, as messages of a graph are.'''
    x = g.pick(lambda value: value.ndim > 1)
    dim = g.choice(axis for axis in range(x.ndim) if axis != x.axis)
    size = g.integer(1, 4)
    shape = [size if axis == dim else length for axis, length in enumerate(x.shape)]
    along = [-1 if axis == dim else 1 for axis in range(x.ndim)]
    index, zeros = index_along(g, x.shape[dim], size), f'x.new_zeros({shape})'
    places = f'{index}.reshape({along}).expand(x.shape)'
    name, code = g.choice([
        ('index_add', f'{zeros}.index_add({dim}, {index}, x)'),
        ('index_add_', f'{zeros}.index_add_({dim}, {index}, x)'),
        ('scatter_add', f'{zeros}.scatter_add({dim}, {places}, x)'),
        ('scatter_add_', f'{zeros}.scatter_add_({dim}, {places}, x)'),
        ('scatter_reduce', f'{zeros}.scatter_reduce({dim}, {places}, x, "mean", include_self=False)'),
    ])
    return g.add(name, code, x, literal=lambda interpreter, step, pair: interpreter.linear(pair, step.evaluate))


@family(.5, bare=False)
def own_mask(g):
    '''Entries that are chosen by their own values, as a constant of the input.'''
    x = g.pick(lambda value: value.ndim > 1)
    code = g.choice([
        'x * (x.detach() > -.2)', 'x * (x.data > -.2).to(x.dtype)', '(x.detach() > -.2) * x',
    ])
    return g.add('own_mask', code, x, literal=lambda interpreter, step, pair: interpreter.linear(
        pair, lambda a, w: a * w, (pair.difference.detach() > -.2).double()
    ))


# transforms

@family()
def fourier(g):
    '''The real or imaginary part of a spectrum along the last axis.'''
    x = g.pick(lambda value: value.ndim > 1 and value.axis is not None and value.axis != value.ndim - 1)
    part = g.choice(['real', 'imag'])
    rows = getattr(torch.fft.rfft(torch.eye(x.shape[-1], dtype=torch.float64)), part)
    return g.add('fourier', f'torch.fft.rfft(x).{part}', x, literal=spectrum, c=rows)


def spectrum(interpreter, step, pair):
    '''The literal form of a linear operation with a constant matrix.'''
    return interpreter.linear(pair, torch.matmul, step.c)
