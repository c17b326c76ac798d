'''The paper's two streams, carried through a program literally: weights in positive and negative parts, sensitivities
by autograd on the streams themselves, relevance by equation 9. Nothing of zennit_dc is used, and all numbers are
float64.'''
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F


def parts(tensor):
    '''The positive and the negative part (section 3.1); those of None are None.'''
    return (None, None) if tensor is None else (tensor.detach().clamp(min=0), (-tensor.detach()).clamp(min=0))


def stabilized(tensor, epsilon):
    '''Epsilon added with the tensor's sign, that of zero being positive.'''
    return tensor + epsilon * (2 * (tensor >= 0).to(tensor.dtype) - 1)


class Shift(torch.autograd.Function):
    '''The shift of local sensitivities at the input of an affine layer (equations 36 to 41), or, in place of it, their
    common part made as large as kappa / n of the difference's, sample by sample.'''
    @staticmethod
    def forward(ctx, plus, minus, interpreter):
        ctx.interpreter = interpreter
        return plus.clone(), minus.clone()

    @staticmethod
    def backward(ctx, plus, minus):
        return *ctx.interpreter.shifted(plus, minus), None


class TimesInput(torch.autograd.Function):
    '''Equation 9: what has come down to a layer's inputs, times these.'''
    @staticmethod
    def forward(ctx, plus, minus):
        ctx.save_for_backward(plus, minus)
        return plus.clone(), minus.clone()

    @staticmethod
    def backward(ctx, *arrived):
        return tuple(stream * gradient for stream, gradient in zip(ctx.saved_tensors, arrived))


class OverOutput(torch.autograd.Function):
    '''Equation 9: relevance over a layer's outputs.'''
    @staticmethod
    def forward(ctx, plus, minus, interpreter):
        ctx.save_for_backward(plus, minus)
        ctx.interpreter = interpreter
        return plus.clone(), minus.clone()

    @staticmethod
    def backward(ctx, *relevances):
        interpreter, outputs = ctx.interpreter, ctx.saved_tensors
        for stream, relevance in zip(outputs, relevances):
            divisors = stream[relevance != 0].abs()
            interpreter.smallest = min([interpreter.smallest, *(divisors / stream.abs().max()).tolist()])
            interpreter.noise = min([interpreter.noise, *divisors[(divisors > 0) | interpreter.cancels].tolist()])
        return *(r / stabilized(z, interpreter.epsilon) for r, z in zip(relevances, outputs)), None


@dataclass
class Pair:
    '''Both streams, the original activation, the largest number of activations before, behind an affine layer what a
    batch norm merges with (the streams before bias and re-centering, and the bias), and whether this is what a ReLU
    made, in whatever order, so that another one is not counted.'''
    plus: torch.Tensor
    minus: torch.Tensor
    original: torch.Tensor | None = None
    depth: float = 0
    layer: tuple | None = None
    rectified: bool = False

    @property
    def difference(self):
        '''The original activation.'''
        return self.plus - self.minus if self.original is None else self.original

    def like(self, plus, minus, **kwargs):
        return Pair(plus, minus, **{'depth': self.depth, **kwargs})


class Box:
    '''A piece of memory, and the cells in it.'''
    def __init__(self, pair):
        self.pair, self.cells = pair, []


class Cell:
    '''A value: a piece of memory, or the entries of one that an index tells; with what is known of them alone.'''
    def __init__(self, box, index=None, depth=None, rectified=None):
        self.box, self.index = box, index
        self.depth = box.pair.depth if depth is None else depth
        self.rectified = box.pair.rectified if rectified is None else rectified
        box.cells.append(self)

    def read(self):
        pair, known = self.box.pair, {'depth': self.depth, 'rectified': self.rectified}
        if self.index is None:
            return replace(pair, **known)
        streams = [each.flatten()[self.index] for each in (pair.plus, pair.minus, pair.difference.detach())]
        return Pair(*streams, **known)

    def of(self, tensor):
        '''The part of a tensor of the whole memory.'''
        return tensor if self.index is None else tensor.flatten()[self.index]

    def write(self, new):
        '''Replace the entries, for all cells of the same memory.'''
        old, mask = self.box.pair, torch.zeros(self.box.pair.plus.shape, dtype=torch.bool)
        mask.view(-1)[... if self.index is None else self.index.flatten()] = True
        for cell in self.box.cells:
            seen = cell.of(mask)
            if seen.any():
                cell.depth = max(cell.depth, new.depth)
                cell.rectified = new.rectified and (cell.rectified or bool(seen.all()))
        if self.index is None:
            self.box.pair = new
            return
        streams = [
            before.flatten().index_put((self.index.flatten(),), after.flatten()).view_as(before) for before, after in
            ((old.plus, new.plus), (old.minus, new.minus), (old.difference.detach(), new.difference.detach()))
        ]
        self.box.pair = Pair(*streams)

    def view(self, function):
        '''The cell of a view.'''
        index = torch.arange(self.box.pair.plus.numel()).view(self.box.pair.plus.shape)
        return Cell(self.box, function(index if self.index is None else self.index), self.depth, self.rectified)


class Passing(torch.autograd.Function):
    '''Another value, with the gradient of the first argument.'''
    @staticmethod
    def forward(ctx, stream, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Interpreter:
    '''One run of a program on two streams.

    Parameters
    ----------
    quantity : {'sensitivity', 'relevance'}
        What the backward passes compute.
    pooling : {'wta', 'convex'}
        The form of max-pooling (section 3.4).
    recentering : {None, 'shifting'}, float or tuple
        The forward stabilisation; a number is the largest ratio of the common part, and a tuple is one of theta and
        threshold for scaling.
    layer : str or None
        The name of the step from whose result on derivatives are taken.

    Attributes
    ----------
    alpha, kappa, epsilon : float
        The parameters of backward passes; kappa takes the place of alpha where it is not None.
    smallest, noise : float
        The smallest entry that relevance was divided by, relative to the layer's largest; and the smallest one that may
        be what rounding has left of entries that cancel, so that its sign, and the stabilizer's, is one of rounding.
    cancels : bool
        Whether there were negative entries.
    close : bool
        Whether there was a maximum of which rounding may choose the winner.
    tied : bool
        Whether a maximum is taken by several entries that torch lets share its gradient, or an activation with several
        kinks is at one of them: torch says what this does to the difference alone.
    '''
    def __init__(self, quantity='sensitivity', pooling='wta', recentering=None, layer=None):
        self.quantity, self.pooling, self.recentering, self.layer = quantity, pooling, recentering, layer
        self.alpha, self.kappa, self.epsilon, self.tied = 0., None, 1e-6, False
        self.smallest, self.noise, self.cancels, self.close = 1., 1., False, False

    def run(self, program, inputs, input_split='relu'):
        '''Run a program, and return its output pair.'''
        cells, self.leaves = {}, []
        for name, input in zip(program.names, inputs):
            streams = parts(input) if input_split == 'relu' else (input / 2, -input / 2)
            cells[name] = Cell(Box(self.leaf(Pair(*streams, input, 0 if self.layer is None else -torch.inf))))
        for index, (step, value, _, source, same) in enumerate(program.trace(inputs)):
            if same and not step.changes:
                cells[step.output] = cells[source]
            elif source is not None and not step.changes:
                cells[step.output] = cells[source].view(step.evaluate)
            else:
                new = step.literal(self, step, *(cells[name].read() for name in step.inputs))
                self.verify(new, value, step)
                new.original = value
                if step.changes:
                    cells[source].write(new)
                    cells[step.output] = cells[source]
                else:
                    cells[step.output] = Cell(Box(new))
                if self.layer == f'steps.{index}':
                    self.leaves = []
                    cells[step.output] = Cell(Box(self.leaf(new, 0)))
        self.output = cells[program.output].read()
        return self.output

    @staticmethod
    def verify(pair, value, step):
        '''Raise if the streams' difference is not the original activation, for whose hard sigmoids torch takes a sixth
        in float32 on a GPU, whatever the dtype.'''
        size = (1e-9 if value.device.type == 'cpu' else 1e-7) * (1 + pair.plus.abs().max().item())
        assert torch.allclose(pair.plus - pair.minus, value, rtol=0, atol=size), f'the interpreter is wrong at {step}'

    def leaf(self, pair, depth=None):
        '''A pair at which derivatives end.'''
        plus, minus = (stream.detach().requires_grad_() for stream in (pair.plus, pair.minus))
        layer = None if pair.layer is None else tuple(each if each is None else each.detach() for each in pair.layer)
        leaf = Pair(plus, minus, pair.original, pair.depth if depth is None else depth, layer, pair.rectified)
        self.leaves.append(leaf)
        return leaf

    def backward(self, plus, minus):
        '''What comes down to the leaves' streams.'''
        streams = [stream for leaf in self.leaves for stream in (leaf.plus, leaf.minus)]
        gradients = torch.autograd.grad(
            [self.output.plus, self.output.minus], streams, [plus, minus], retain_graph=True, allow_unused=True
        )
        gradients = [torch.zeros_like(s) if g is None else g for s, g in zip(streams, gradients)]
        return list(zip(gradients[::2], gradients[1::2]))

    def sensitivities(self, weights, output):
        '''The local sensitivities of the output's g or h, shifted there once more (claim 2).'''
        zeros = torch.zeros_like(weights)
        plus, minus = (weights, zeros) if output == 'g' else (zeros, weights)
        alpha = self.alpha if self.kappa is None else (1 - self.kappa / max(self.output.depth, 1)) / 2
        return self.backward(plus - alpha * (plus + minus), minus - alpha * (plus + minus))

    def relevances(self, weights):
        '''The relevances of both streams, all of which enters at the positive one.'''
        return self.backward(weights, torch.zeros_like(weights))

    def shifted(self, plus, minus):
        '''The sensitivities of a layer's input, shifted.'''
        if self.kappa is None:
            return plus - self.alpha * (plus + minus), minus - self.alpha * (plus + minus)
        difference, total = plus - minus, plus + minus
        axes = list(range(1, plus.ndim))
        size, target = (each.abs().mean(axes, keepdim=True) for each in (total, difference))
        if (target > 0).any():  # what rounding leaves of streams that cancel is not to be scaled
            self.noise = min(self.noise, (size / target)[target > 0].min().item())
        total = total / size.clamp(min=1e-300) * target * self.kappa / max(self.output.depth, 1)
        return (total + difference) / 2, (total - difference) / 2

    def recentered(self, plus, minus):
        '''Both streams with another common part, which no derivative sees (theorem 6).'''
        if self.recentering is None:
            return plus, minus
        p, m = plus.detach(), minus.detach()
        common = torch.minimum(p, m)
        if self.recentering == 'shifting':
            new = (p - m) / 2
            return Passing.apply(plus, new), Passing.apply(minus, -new)
        news = []
        if isinstance(self.recentering, float):
            for first, second, shared in zip(p, m, common):
                most = self.recentering * (first - second).abs().mean()
                if self.recentering == 0. and shared.abs().mean() > 0:  # whether there is an excess, rounding may say
                    self.noise = min(self.noise, (shared.mean().abs() / shared.abs().mean()).item())
                part = shared * min(1., most / (2 * shared).mean()) if shared.mean() > 0 else shared
                news.append((first - shared + part, second - shared + part))
            return tuple(Passing.apply(stream, torch.stack(new)) for stream, new in zip((plus, minus), zip(*news)))
        theta, threshold = self.recentering
        for first, second, shared in zip(p, m, common):
            if max(first.max(), second.max()) > threshold:
                part = theta * shared
                while (2 * part).max() > threshold:
                    part = theta * part
                first, second = first - shared + part, second - shared + part
            news.append((first, second))
        return tuple(Passing.apply(stream, torch.stack(new)) for stream, new in zip((plus, minus), zip(*news)))

    def activated(self, pair, plus, minus):
        '''The output of an activation of a pair.'''
        streams = self.recentered(plus, minus) if isinstance(self.recentering, float) else (plus, minus)
        return pair.like(*streams, depth=pair.depth + 1)

    # what operations are made of

    def before(self, pair, weights):
        '''The streams in front of a linear operation, with or without weights.'''
        if self.quantity == 'relevance':
            self.cancels |= bool((pair.plus < 0).any() | (pair.minus < 0).any())
            return TimesInput.apply(pair.plus, pair.minus)
        return Shift.apply(pair.plus, pair.minus, self) if weights else (pair.plus, pair.minus)

    def after(self, plus, minus):
        '''The streams behind it.'''
        return OverOutput.apply(plus, minus, self) if self.quantity == 'relevance' else (plus, minus)

    def affine(self, pair, function, weight, bias=None, shift=True):
        '''A layer with weights (equations 2 and 3), a function of input, weight and bias.'''
        plus, minus = self.before(pair, shift)
        positive, negative = parts(weight)
        full = None if bias is None else function(torch.zeros_like(plus), weight, bias).detach()
        return self.finished(
            pair, function(plus, positive, None) + function(minus, negative, None),
            function(plus, negative, None) + function(minus, positive, None), full
        )

    def finished(self, pair, plus, minus, bias):
        '''The output of a layer whose streams are given without bias.'''
        positive, negative = (0, 0) if bias is None else parts(bias)
        streams = self.recentered(*self.after(plus + positive, minus + negative))
        return pair.like(*streams, layer=(plus, minus, bias))

    def norm(self, pair, scale, shift):
        '''A batch norm, which is part of the layer that it follows.'''
        if pair.layer is None or self.quantity == 'sensitivity':
            return self.affine(
                pair, lambda a, w, b: a * w if b is None else a * w + b, scale, shift, shift=pair.layer is None
            )
        plus, minus, bias = pair.layer
        positive, negative = parts(scale)
        streams = plus * positive + minus * negative, plus * negative + minus * positive
        shift = (shift if bias is None else shift + scale * bias).expand_as(plus)
        if any(leaf.layer is pair.layer for leaf in self.leaves):
            values = [stream + part for stream, part in zip(streams, parts(shift))]
            streams = Passing.apply(pair.plus, values[0]), Passing.apply(pair.minus, values[1])
            return pair.like(*self.recentered(*streams))
        return self.finished(pair, *streams, shift)

    def linear(self, pair, function, weight=None, constant=0.):
        '''A linear operation without parameters of a layer: a function of the input and, if there is one, of a factor;
        and a constant to add.'''
        plus, minus = self.before(pair, False)
        added = parts(torch.as_tensor(constant, dtype=torch.float64))
        if weight is None:
            streams = function(plus), function(minus)
        else:
            positive, negative = parts(torch.as_tensor(weight, dtype=torch.float64))
            streams = (
                function(plus, positive) + function(minus, negative),
                function(plus, negative) + function(minus, positive),
            )
        return pair.like(*self.after(*(stream + part for stream, part in zip(streams, added))))

    def negated(self, pair):
        '''The streams exchanged.'''
        return pair.like(pair.minus, pair.plus, original=-pair.difference)

    def add(self, *pairs):
        '''The sum of pairs, of which each gets an even share of relevance, but for entries that are zero.'''
        streams = [torch.broadcast_tensors(*(getattr(pair, name) for pair in pairs)) for name in ('plus', 'minus')]
        if self.quantity == 'relevance':
            sizes = [(plus.abs() + minus.abs()).detach() for plus, minus in zip(*streams)]
            least = 1e-13 * max(size.max() for size in sizes)  # as the literal streams have rounding
            count = sum((size > least).to(size.dtype) for size in sizes).clamp(min=1)
            streams = [[Passing.apply(each / count, each) for each in stream] for stream in streams]
        return Pair(*(sum(stream[1:], stream[0]) for stream in streams), depth=max(pair.depth for pair in pairs))

    def multiply(self, first, other, function):
        '''A product of two pairs (equation 19), or another function that is linear in each.'''
        factors = [self.before(pair, False) for pair in (first, other)]
        if self.quantity == 'relevance':
            factors = [[Passing.apply(stream / 2, stream) for stream in pair] for pair in factors]
        (plus, minus), (other_plus, other_minus) = factors
        streams = self.after(
            function(plus, other_plus) + function(minus, other_minus),
            function(plus, other_minus) + function(minus, other_plus)
        )
        return Pair(*self.recentered(*streams), depth=max(first.depth, other.depth))

    def route(self, function, *pairs, c=None, moves=False):
        '''What only moves values, and constants by their parts; or entries of one pair alone.'''
        own = [{}] * 3 if c is None else [{'c': each} for each in (*parts(c), c.detach())]
        streams = zip(*((pair.plus, pair.minus, pair.difference.detach()) for pair in pairs))
        moved = [function(*each, **constants) for each, constants in zip(streams, own)]
        return Pair(*moved, max(pair.depth for pair in pairs), rectified=moves and pairs[0].rectified)

    def activation(self, pair, constant, slope, hinges, derivative=None):
        '''A piecewise-linear function: constant + slope z + the sum of c max(side (z - t), 0) over hinges (c, t, side),
        each of them a constant added, equation 1, and a factor. At a kink, the mask is that of the original network's
        derivative, if it is given; else the slope of max(z, 0) is 0 there.'''
        d = pair.difference.detach()
        slopes, constants = (parts(torch.as_tensor(each, dtype=torch.float64)) for each in (slope, constant))
        plus = pair.plus * slopes[0] + pair.minus * slopes[1] + constants[0]
        minus = pair.minus * slopes[0] + pair.plus * slopes[1] + constants[1]
        self.tied |= len(hinges) > 1 and any(bool((d == knot).any()) for _, knot, _ in hinges)
        for factor, knot, side in hinges:
            first, second = pair.plus + max(-knot, 0), pair.minus + max(knot, 0)
            first, second = (first, second) if side > 0 else (second, first)
            beyond = side * (d - knot) > 0
            if derivative is not None:
                beyond |= (d == knot) & ((derivative - slope - factor * side).abs() < (derivative - slope).abs())
            larger = torch.where(beyond, first, second)
            factor = parts(torch.as_tensor(factor, dtype=torch.float64))
            plus = plus + factor[0] * larger + factor[1] * second
            minus = minus + factor[0] * second + factor[1] * larger
        if self.quantity == 'relevance':
            plus, minus = Passing.apply(pair.plus, plus), Passing.apply(pair.minus, minus)
        return self.activated(pair, plus, minus)

    def relu(self, pair, derivative=None):
        '''ReLU, which is one activation more unless it changes nothing.'''
        output = self.activation(pair, 0., 0., [(1., 0., 1)], derivative)
        return replace(output, depth=pair.depth if pair.rectified else output.depth, rectified=True)

    def tangent(self, pair, function, slope):
        '''A smooth function that is zero at zero by its tangent at the given input, with the function of the streams'
        sum as their sum, which no derivative sees. Relevance passes unchanged.'''
        rising, falling = parts(slope)
        total, value = (pair.plus + pair.minus).detach(), function(pair.difference.detach())
        values = [(function(total) + sign * value) / 2 for sign in (1, -1)]
        streams = pair.plus * rising + pair.minus * falling, pair.minus * rising + pair.plus * falling
        streams = (pair.plus, pair.minus) if self.quantity == 'relevance' else streams
        return pair.like(*(Passing.apply(*both) for both in zip(streams, values)))

    def maximum(self, pair, windows, inside=True, shares=True):
        '''The maximum over windows, which a function lays along the last axis, in both forms of section 3.4.'''
        plus, minus, d = windows(pair.plus), windows(pair.minus), windows(pair.difference.detach())
        inside = torch.as_tensor(inside, device=d.device).expand_as(d)
        d = torch.where(inside, d, -torch.inf)
        self.tied |= shares and bool(((d == d.amax(-1, keepdim=True)).sum(-1) > 1).any())
        self.close |= bool(((d >= d.amax(-1, keepdim=True) - 1e-12).sum(-1) > 1).any())
        winner = F.one_hot(d.argmax(-1), d.shape[-1]).to(plus.dtype)
        streams = (plus * winner).sum(-1), (minus * winner).sum(-1)
        if self.pooling == 'convex':
            total = (minus * inside).sum(-1)
            convex = streams[0] + (total - streams[1]), total
            streams = convex if self.quantity == 'sensitivity' else [
                Passing.apply(stream, value) for stream, value in zip(streams, convex)
            ]
        return pair.like(*streams)

    def constant(self, value):
        '''A constant as a pair.'''
        return Pair(*parts(value.detach()), value.detach(), -torch.inf)
