'''The paper's equations word by word: two streams, weights in positive and negative parts, derivatives written out.
Nothing of zennit_dc is used, no autograd, and all numbers are float64.'''
import torch
from torch.nn import functional as F


def parts(tensor):
    '''The positive and the negative part (section 3.1).'''
    return tensor.clamp(min=0), (-tensor).clamp(min=0)


def sign(tensor):
    '''The sign, that of zero being positive.'''
    return 2 * (tensor >= 0).to(tensor.dtype) - 1


class Affine:
    '''Equations 2 and 3, with the bias split as in section 3.4.'''
    def __init__(self, apply, transpose, weight, bias, shifted=True, recentered=True):
        self.apply, self.transpose = apply, transpose
        self.weight = weight
        self.bias = torch.zeros(weight.shape[0], dtype=weight.dtype) if bias is None else bias
        self.shifted, self.recentered = shifted, recentered

    def forward(self, plus, minus):
        self.inputs = plus, minus
        (w_plus, w_minus), (b_plus, b_minus) = parts(self.weight), parts(self.bias)
        self.outputs = (
            self.apply(plus, w_plus, b_plus) + self.apply(minus, w_minus, torch.zeros_like(b_plus)),
            self.apply(plus, w_minus, b_minus) + self.apply(minus, w_plus, torch.zeros_like(b_plus)),
        )
        return self.outputs

    def sensitivities(self, plus, minus, alpha):
        '''Equations 58 and 59, and the shift of equations 36 to 41.'''
        w_plus, w_minus = parts(self.weight)
        shape = self.inputs[0].shape
        into_plus = self.transpose(plus, w_plus, shape) + self.transpose(minus, w_minus, shape)
        into_minus = self.transpose(plus, w_minus, shape) + self.transpose(minus, w_plus, shape)
        shift = alpha * (into_plus + into_minus) if self.shifted else 0.
        return into_plus - shift, into_minus - shift

    def relevance(self, plus, minus, epsilon):
        '''Equation 9 with gamma = 0 for the neurons of both streams.'''
        u_plus, u_minus = (
            relevance / (output + epsilon * sign(output))
            for relevance, output in zip((plus, minus), self.outputs)
        )
        w_plus, w_minus = parts(self.weight)
        shape = self.inputs[0].shape
        a_plus, a_minus = self.inputs
        return (
            a_plus * (self.transpose(u_plus, w_plus, shape) + self.transpose(u_minus, w_minus, shape)),
            a_minus * (self.transpose(u_plus, w_minus, shape) + self.transpose(u_minus, w_plus, shape)),
        )


def convolution(weight, bias, stride=1, padding=0, groups=1, **kwargs):
    return Affine(
        lambda a, w, b: F.conv2d(a, w, b, stride, padding, 1, groups),
        lambda g, w, shape: torch.nn.grad.conv2d_input(shape, w, g, stride, padding, 1, groups), weight, bias, **kwargs
    )


def dense(weight, bias):
    return Affine(lambda a, w, b: a @ w.T + b, lambda g, w, shape: g @ w, weight, bias)


def scale_and_shift(scale, shift, shifted):
    '''A batch norm in eval mode.'''
    def shaped(w):
        return w.reshape(1, -1, 1, 1)
    return Affine(lambda a, w, b: a * shaped(w) + shaped(b), lambda g, w, shape: g * shaped(w), scale, shift, shifted)


class AveragePool:
    '''A positive linear operator, on each stream.'''
    recentered = False

    def __init__(self, size):
        self.size = size

    def forward(self, plus, minus):
        self.inputs = plus, minus
        self.outputs = tuple(F.avg_pool2d(stream, self.size) for stream in (plus, minus))
        return self.outputs

    def transpose(self, gradient):
        return F.interpolate(gradient, scale_factor=self.size, mode='nearest') / self.size ** 2

    def sensitivities(self, plus, minus, alpha):
        return self.transpose(plus), self.transpose(minus)

    def relevance(self, plus, minus, epsilon):
        return tuple(
            a * self.transpose(relevance / (z + epsilon * sign(z)))
            for relevance, a, z in zip((plus, minus), self.inputs, self.outputs)
        )


class ReLU:
    '''Equation 1. At zero, where the equation's maximum has two derivatives, it is the one that torch's ReLU has.'''
    recentered = False

    def forward(self, plus, minus):
        self.mask = (plus - minus > 0).to(plus.dtype)
        return torch.maximum(plus, minus), minus

    def sensitivities(self, plus, minus, alpha):
        return self.mask * plus, (1 - self.mask) * plus + minus

    def relevance(self, plus, minus, epsilon):
        return plus, minus


class MaxPool:
    '''Max-pooling by enumeration of its windows, in both forms of section 3.4.'''
    recentered = False

    def __init__(self, size, stride, padding, pooling):
        self.size, self.stride, self.padding, self.pooling = size, stride, padding, pooling

    def windows(self, tensor):
        padded = F.pad(tensor, [self.padding] * 4, value=float('nan'))
        return padded.unfold(2, self.size, self.stride).unfold(3, self.size, self.stride).flatten(-2)

    def forward(self, plus, minus):
        self.shape = plus.shape
        plus, minus = self.windows(plus), self.windows(minus)
        self.inside = ~plus.isnan()
        difference = torch.where(self.inside, plus - minus, -torch.inf)
        self.winner = F.one_hot(difference.argmax(-1), self.size ** 2).to(plus.dtype)
        plus, minus = plus.nan_to_num(), minus.nan_to_num()
        if self.pooling == 'wta':
            return (plus * self.winner).sum(-1), (minus * self.winner).sum(-1)
        others = minus.sum(-1, keepdim=True) - minus
        return torch.where(self.inside, plus + others, -torch.inf).amax(-1), minus.sum(-1)

    def back(self, windows):
        '''Sum the windows' entries at their places.'''
        height, width = self.shape[2] + 2 * self.padding, self.shape[3] + 2 * self.padding
        batch, channels, rows, columns, size = windows.shape
        blocks = windows.permute(0, 1, 4, 2, 3).reshape(batch, channels * size, rows * columns)
        folded = F.fold(blocks, (height, width), self.size, stride=self.stride)
        return folded[:, :, self.padding:height - self.padding, self.padding:width - self.padding]

    def sensitivities(self, plus, minus, alpha):
        plus, minus = plus.unsqueeze(-1), minus.unsqueeze(-1)
        if self.pooling == 'wta':
            return self.back(self.winner * plus), self.back(self.winner * minus)
        return (
            self.back(self.winner * plus),
            self.back(((1 - self.winner) * plus + minus) * self.inside),
        )

    def relevance(self, plus, minus, epsilon):
        return self.back(self.winner * plus.unsqueeze(-1)), self.back(self.winner * minus.unsqueeze(-1))


class Add:
    '''The sum of two split pairs, and an even share of relevance.'''
    recentered = False

    def forward(self, first, other):
        return first[0] + other[0], first[1] + other[1]


class Flatten:
    recentered = False

    def forward(self, plus, minus):
        self.shape = plus.shape
        return plus.flatten(1), minus.flatten(1)

    def sensitivities(self, plus, minus, alpha):
        return plus.reshape(self.shape), minus.reshape(self.shape)

    def relevance(self, plus, minus, epsilon):
        return self.sensitivities(plus, minus, None)


def recenter(plus, minus, recentering):
    '''Scale, sample by sample, what both streams have in common, to a ratio or below a threshold, or shift them to half
    of their difference.'''
    if recentering is None:
        return plus, minus
    if recentering == 'shifting':
        return (plus - minus) / 2, (minus - plus) / 2
    streams = []
    if isinstance(recentering, float):
        for a_plus, a_minus in zip(plus, minus):
            excess = 2 * torch.minimum(a_plus, a_minus)
            largest = recentering * (a_plus - a_minus).abs().mean()
            part = excess / 2 * (largest / excess.mean() if excess.mean() > largest else 1)
            streams.append(tuple(stream + part for stream in parts(a_plus - a_minus)))
        return tuple(torch.stack(stream) for stream in zip(*streams))
    theta, threshold = recentering
    for a_plus, a_minus in zip(plus, minus):
        if max(a_plus.max(), a_minus.max()) > threshold:
            common = theta * torch.minimum(a_plus, a_minus)
            while (2 * common).max() > threshold:
                common = theta * common
            a_plus, a_minus = parts(a_plus - a_minus)
            a_plus, a_minus = a_plus + common, a_minus + common
        streams.append((a_plus, a_minus))
    return tuple(torch.stack(stream) for stream in zip(*streams))


class LiteralNetwork:
    '''A network as a list of (name, operation, names of inputs), the input being named 'input'.'''
    def __init__(self, nodes):
        self.nodes = nodes

    def forward(self, x, input_split='relu', recentering=None):
        '''The activations of both streams by the nodes' names.'''
        self.streams = {'input': parts(x) if input_split == 'relu' else (x / 2, -x / 2)}
        for name, operation, sources in self.nodes:
            arguments = [self.streams[source] for source in sources]
            streams = operation.forward(*(arguments if len(arguments) > 1 else arguments[0]))
            asked = operation.recentered or (isinstance(operation, ReLU) and isinstance(recentering, float))
            self.streams[name] = recenter(*streams, recentering) if asked else streams
        return self.streams[name]

    def backward(self, plus, minus, step, share=1.):
        '''What arrives at each node's output, summed over the nodes that it goes to.'''
        arrived = {self.nodes[-1][0]: (plus, minus)}
        for name, operation, sources in reversed(self.nodes):
            plus, minus = arrived[name]
            if isinstance(operation, Add):
                contributions = [(share * plus, share * minus)] * 2
            else:
                contributions = [step(name, operation, plus, minus)]
            for source, (new_plus, new_minus) in zip(sources, contributions):
                old_plus, old_minus = arrived.get(source, (0., 0.))
                arrived[source] = old_plus + new_plus, old_minus + new_minus
        return arrived

    def sensitivities(self, unit, stream, alpha):
        '''The shifted local sensitivities at each node of output unit's g or h; alpha may be one for each name.'''
        plus, minus = (torch.zeros_like(self.streams[self.nodes[-1][0]][0]) for _ in range(2))
        (plus if stream == 'g' else minus)[:, unit] = 1.
        def of(name):
            return alpha.get(name) if isinstance(alpha, dict) else alpha

        shift = of('') * (plus + minus)
        return self.backward(
            plus - shift, minus - shift, lambda name, node, *deltas: node.sensitivities(*deltas, of(name))
        )

    def relevances(self, output_relevance, epsilon):
        '''The relevances at each node.'''
        return self.backward(
            output_relevance, torch.zeros_like(output_relevance),
            lambda name, node, *relevances: node.relevance(
                *relevances, epsilon[name] if isinstance(epsilon, dict) else epsilon
            ), share=.5
        )


class Network(torch.nn.Module):
    '''A network with batch norm, a shared and a functional ReLU, an in-place residual addition, grouped and strided
    convolution, max-pooling and average pooling.'''
    def __init__(self, seed=0, bias=True):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv1 = torch.nn.Conv2d(3, 8, 3, padding=1, bias=bias)
        self.norm1 = torch.nn.BatchNorm2d(8)
        self.relu = torch.nn.ReLU(inplace=True)
        self.pool = torch.nn.MaxPool2d(3, 2, 1)
        self.conv2 = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(8)
        self.conv3 = torch.nn.Conv2d(8, 8, 1, bias=bias)
        self.conv4 = torch.nn.Conv2d(8, 12, 3, 2, bias=bias)
        self.mean = torch.nn.AvgPool2d(3)
        self.dense = torch.nn.Linear(12, 5, bias=bias)
        for parameter in [*self.parameters(), *self.buffers()]:
            if parameter.is_floating_point():
                parameter.data = .3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for norm in (self.norm1, self.norm2):
            norm.running_var.abs_().add_(.1)
            if not bias:
                norm.bias.data.zero_()
                norm.running_mean.zero_()
        self.double().eval()

    def forward(self, x):
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        out = F.relu(self.norm2(self.conv2(x)), inplace=True)
        out = self.conv3(out)
        out += x
        out = self.relu(self.conv4(self.relu(out)))
        return self.dense(torch.flatten(self.mean(out), 1))

    def literal(self, pooling='wta', merged=False):
        '''The same network for the literal implementation, with batch norms merged into convolutions or not.'''
        def norm_of(norm):
            scale = norm.weight.data / torch.sqrt(norm.running_var + norm.eps)
            return scale, norm.bias.data - norm.running_mean * scale

        def block(index, source, padding, groups):
            conv, norm = getattr(self, f'conv{index}'), getattr(self, f'norm{index}')
            weight, bias = conv.weight.data, None if conv.bias is None else conv.bias.data
            scale, shift = norm_of(norm)
            if merged:
                weight = weight * scale.reshape(-1, 1, 1, 1)
                bias = shift + (0 if bias is None else bias * scale)
                return [(f'norm{index}', convolution(weight, bias, 1, padding, groups), [source])]
            return [
                (f'conv{index}', convolution(weight, bias, 1, padding, groups), [source]),
                (f'norm{index}', scale_and_shift(scale, shift, shifted=False), [f'conv{index}']),
            ]

        def plain(layer):
            return layer.weight.data, None if layer.bias is None else layer.bias.data

        return LiteralNetwork([
            *block(1, 'input', 1, 1), ('relu1', ReLU(), ['norm1']), ('pool', MaxPool(3, 2, 1, pooling), ['relu1']),
            *block(2, 'pool', 1, 2), ('relu2', ReLU(), ['norm2']),
            ('conv3', convolution(*plain(self.conv3)), ['relu2']), ('add', Add(), ['conv3', 'pool']),
            ('relu3', ReLU(), ['add']), ('conv4', convolution(*plain(self.conv4), 2), ['relu3']),
            ('relu4', ReLU(), ['conv4']), ('mean', AveragePool(3), ['relu4']), ('flat', Flatten(), ['mean']),
            ('dense', dense(*plain(self.dense)), ['flat']),
        ])
