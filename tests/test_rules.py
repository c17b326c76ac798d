'''The rules of layers.'''
import copy
import itertools
import warnings

import pytest
import torch
from helpers import assert_close, explain, gradients, random_image
from literal import Affine, Network
from small_models import Calling, with_layers
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus, LayerMapComposite, MixedComposite, NameMapComposite
from zennit.core import Stabilizer
from zennit.rules import Epsilon, Gamma, Pass

from zennit_dc import Balanced, Shifting, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import class_relevance
from zennit_dc.demo import demo_network, draw_batch
from zennit_dc.rules import ShiftedSensitivity, SplitEpsilon, SplitRule, mean_size, over_epsilon, ruled


UNIT = 2
# the activations from each node to the output, on the longest way; a map at conv4 is read after its own
ACTIVATIONS = {'input': 4, 'conv1': 4, 'pool': 3, 'conv2': 3, 'conv3': 2, 'conv4': 0, 'mean': 0}


def test_foreign_rules_are_refused(network, image):
    for rule in (Gamma(), Epsilon()):
        with pytest.raises(TypeError, match=type(rule).__name__):
            SplitLRP(layer_map=[(nn.Linear, rule)])
        mixed = MixedComposite([NameMapComposite([(['conv3'], rule)]), SplitLRP()])
        with mixed.context(network), pytest.raises(TypeError, match=f'{type(rule).__name__}.*conv3'):
            network(image)
    with EpsilonPlus().context(network), SplitGrad().context(network), pytest.raises(TypeError, match='conv1'):
        network(image)
    for rule, composite in ((ShiftedSensitivity(.3), SplitLRP()), (SplitEpsilon(), SplitGrad())):
        mixed = MixedComposite([NameMapComposite([(['conv3'], rule)]), composite])
        with mixed.context(network), pytest.raises(TypeError, match='rule for'):
            network(image)


def test_what_is_no_rule_is_refused(network, image):
    with pytest.raises(TypeError, match='SplitEpsilon of .* is a class'):
        SplitLRP(layer_map=[((nn.Linear,), SplitEpsilon)])
    composite = SplitLRP(layer_map=[((nn.Conv2d,), SplitRule())])
    with composite.context(network), pytest.raises(TypeError, match='SplitRule has no quantity.* for relevance'):
        network(image)


@pytest.mark.parametrize('names, rule', [(['conv1'], SplitEpsilon(.5)), (['conv2'], SplitEpsilon(.2))])
def test_epsilon_of_a_convolution_with_batch_norm(network, image, names, rule):
    literal = network.literal(merged=True)
    literal.forward(image, recentering=1.)
    epsilons = dict.fromkeys([name for name, *_ in literal.nodes], 1e-6)
    epsilons[names[0].replace('conv', 'norm')] = rule.epsilon
    expected = literal.relevances(torch.eye(5, dtype=torch.float64)[[UNIT] * 2], epsilons)['input'][0]
    mixed = MixedComposite([NameMapComposite([(names, rule)]), SplitLRP(stream='positive')])
    assert_close(explain(mixed, network, image), expected)


def test_rule_of_a_root_that_is_a_layer():
    model, image = nn.Linear(4, 3).double(), random_image(2, 4)
    strong = explain(SplitLRP(layer_map=[(nn.Linear, SplitEpsilon(10.))]), model, image)
    assert_close(strong, explain(SplitLRP(10.), model, image))


@pytest.mark.parametrize('stream', ['positive', 'negative'])
def test_epsilon_as_a_function(network, image, stream):
    '''Zennit's stabilizer in a function is the number; without it, the rule with epsilon zero.'''
    for epsilon, function in ((.3, Stabilizer(.3)), (1e-6, lambda output: Stabilizer(1e-6)(output))):
        expected = explain(SplitLRP(epsilon, stream), network, image)
        assert torch.equal(explain(SplitLRP(function, stream), network, image), expected)
    other = explain(SplitLRP(Stabilizer(.3, norm_scale=True), stream), network, image)
    assert not torch.allclose(other, explain(SplitLRP(.3, stream), network, image))
    with pytest.raises(ValueError, match='positive number or a callable'):
        SplitEpsilon('small')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_stabilizer_is_that_of_zennit(dtype):
    '''To the last bit; and nothing is left of relevance where a stream is zero.'''
    denominator = torch.cat([torch.tensor([1e-6, -1e-6, 1e-30, -3.]), torch.randn(100)]).to(dtype)
    relevance, zero = torch.randn(104).to(dtype), torch.tensor([0., -0.], dtype=dtype)
    for epsilon in (1e-6, .3):
        quotient = over_epsilon(epsilon, relevance, 2. * denominator)
        assert torch.equal(quotient, relevance / Stabilizer(epsilon)(denominator))
        assert not over_epsilon(epsilon, torch.ones(2, dtype=dtype), zero).any()


def test_rule_of_ones_own_for_outputs(network, image):
    '''Between output and input of a layer are the gradients of difference and sum, so that each side can be replaced by
    its own.'''
    class Own(SplitEpsilon):
        def after(self, pair):
            def divide(positive, negative, difference, stream_sum):
                u, v = positive / (stream_sum + difference) * 2, negative / (stream_sum - difference) * 2
                return torch.nan_to_num(u - v), torch.nan_to_num(u + v)
            return ruled(pair, divide, *pair.tensors)

    expected = explain(SplitLRP(1e-30), network, image)
    assert_close(explain(SplitLRP(layer_map=[((nn.Conv2d,), Own())], epsilon=1e-30), network, image), expected)


@pytest.mark.parametrize('shape', [(3, 5), (2, 300, 5, 4), (90_000,)])
def test_mean_sizes(shape):
    '''Two of them, as both of a layer are in use at once.'''
    rows, others = random_image(*shape), random_image(*shape, seed=2)
    with torch.no_grad():
        sizes = [mean_size(each) for each in (rows, others)]
    for size, each in zip(sizes, (rows, others)):
        assert torch.equal(size, each.abs().mean([*range(1, each.ndim)], keepdim=True) if each.ndim > 1 else each.abs())


# the sum's gradient, balanced with the difference's

def balanced(literal, stream, part):
    '''The balanced sensitivities at each node of the literal implementation.'''
    def step(name, node, plus, minus):
        plus, minus = node.sensitivities(plus, minus, 0.)
        if not (isinstance(node, Affine) and node.shifted):
            return plus, minus
        gradient, sum_gradient = (plus - minus) / 2, (plus + minus) / 2
        axes = tuple(range(1, gradient.ndim))
        size, sum_size = (each.abs().mean(axes, keepdim=True) for each in (gradient, sum_gradient))
        sum_gradient = sum_gradient * part * size / torch.where(sum_size > 0., sum_size, 1.)
        return sum_gradient + gradient, sum_gradient - gradient

    gradient = torch.zeros_like(literal.streams[literal.nodes[-1][0]][0])
    gradient[:, UNIT] = .5 if stream == 'g' else -.5
    sum_gradient = part * gradient.abs()
    return literal.backward(sum_gradient + gradient, sum_gradient - gradient, step)


@pytest.mark.parametrize('pooling', ['wta', 'convex'])
@pytest.mark.parametrize('kappa', [0., .1, 1.])
@pytest.mark.parametrize('stream', ['+g', 'g', '-h', 'h'])
def test_balanced_sensitivities_are_those_of_the_literal_implementation(stream, kappa, pooling):
    network, image = Network(), random_image(3, 3, 16, 16)
    literal = network.literal(pooling)
    literal.forward(image)
    for node, activations in ACTIVATIONS.items():
        read_at = {'conv4': 'relu4'}.get(node, node)
        plus, minus = balanced(literal, stream[-1], kappa / max(activations, 1))[read_at]
        expected = {'+': plus, '-': minus}.get(stream[0], (plus - minus) / 2)
        if node == 'input':
            assert_close(explain(SplitGrad(Balanced(kappa), stream, pooling=pooling), network, image), expected)
        else:
            composite = SplitGrad(Balanced(kappa), stream, layer=node, pooling=pooling)
            explain(composite, network, image)
            assert_close(composite.saliency, expected.mean(1))


def test_kappa_of_zero_is_the_original_gradient():
    network, image = Network(), random_image(3, 3, 16, 16)
    assert_close(explain(SplitGrad(Balanced(0.)), network, image), explain(SplitGrad(.5), network, image))


def test_balanced_maps_do_not_depend_on_the_batch():
    network, images = Network(), random_image(4, 3, 16, 16)
    for composite in (SplitGrad(Balanced(.5)), SplitCAM('conv3', Balanced(.5), '+g')):
        together = explain(composite, network, images)
        for index, image in enumerate(images):
            assert_close(explain(composite, network, image[None]), together[index:index + 1])


class Heads(nn.Module):
    '''Two outputs after two and five activations, or the first of them, with or without a branch for the other.'''
    def __init__(self, outputs, computes=True):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.more, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.outputs, self.computes = outputs, computes

    def forward(self, x):
        x = torch.relu(self.more(torch.relu(self.body(x))))
        first, other = self.last(x), x
        for _ in range(3 if self.computes else 0):
            other = torch.relu(self.more(other))
        return (first, self.last(other))[:self.outputs] if self.outputs > 1 else first


def seeded_map(model, input, score):
    input = input.clone().requires_grad_()
    with SplitGrad().context(model):
        return torch.autograd.grad(score(model(input)), input)[0]


def test_balanced_counts_activations_that_lead_to_what_is_explained():
    input, (plain, branch, both) = random_image(2, 4), (
        each.double() for each in (Heads(1, False), Heads(1), Heads(2))
    )
    expected = seeded_map(plain, input, lambda output: output[:, 0].sum())
    assert torch.equal(seeded_map(branch, input, lambda output: output[:, 0].sum()), expected)
    for score in (lambda output: output[0][:, 0].sum(), lambda output: output[0][:, 0].sum() + 0. * output[1].sum()):
        assert_close(seeded_map(both, input, score), expected)
    deep = seeded_map(both, input, lambda output: output[1][:, 0].sum())
    mixed = seeded_map(both, input, lambda output: output[0][0, 0] + output[1][1, 0])
    assert_close(mixed, torch.stack([expected[0], deep[1]]))


def test_balanced_maps_are_homogeneous_in_the_relevance_and_differentiable():
    network, image = Network(), random_image(2, 3, 16, 16)
    relevance = class_relevance(UNIT)
    attributor = Gradient(network, SplitGrad(Balanced(.3)), create_graph=True)
    _, first = attributor(image, relevance)
    _, second = attributor(image, lambda output: 3. * relevance(output))
    assert_close(second, 3. * first)
    for parameter in (network.conv2.weight, network.dense.weight):
        with attributor as registered:
            _, map = registered(image, relevance)
            weights = torch.linspace(-1., 1., map.numel(), dtype=map.dtype).view_as(map)
            gradient, = torch.autograd.grad((map * weights).sum(), parameter)
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=parameter.dtype)
        values = []
        for sign in (1., -1.):
            with torch.no_grad():
                parameter += sign * 1e-6 * direction
            values.append((attributor(image, relevance)[1].detach() * weights).sum())
            with torch.no_grad():
                parameter -= sign * 1e-6 * direction
        numeric = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_output_and_dtypes_of_balanced_maps(dtype):
    network = demo_network().to(dtype)
    images, _, labels = draw_batch(4, 3)
    input = torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype) / 128. - 1.
    with Gradient(network, SplitCAM('features', Balanced())) as attributor:
        output, map = attributor(input, class_relevance(torch.from_numpy(labels)))
    assert torch.equal(output, network(input)) and map.dtype == dtype and torch.isfinite(map).all()


def test_one_kappa_serves_every_depth():
    '''The share of the map that two classes have in common grows with alpha's distance from 0.5 the faster the deeper
    the network above the layer is, but hardly with kappa.'''
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU()]
    for _ in range(12):
        layers += [torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    network.double().eval()
    for layer in network[::2]:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    image = random_image(8, 3, 12, 12)

    def common(alpha, layer):
        composite = SplitGrad(alpha, layer=layer)
        maps = []
        for unit in (0, 1):
            explain(composite, network, image, unit)
            maps.append(composite.saliency.flatten(1))
        return torch.nn.functional.cosine_similarity(*maps).mean()

    deep, shallow = '1', '21'
    original = [common(.5, layer) for layer in (deep, shallow)]
    shifted = [common(.4, layer) for layer in (deep, shallow)]
    kept = [common(Balanced(.1), layer) for layer in (deep, shallow)]
    assert shifted[0] > .99
    assert max(abs(now - before) for now, before in zip(kept, original)) < .3


@pytest.mark.parametrize('kappa', [-.1, float('inf'), float('nan'), '0.1', True, None])
def test_bad_kappas(kappa):
    with pytest.raises(ValueError, match='kappa'):
        Balanced(kappa)


def test_one_kappa_for_each_module():
    network, image = Network(), random_image(1, 3, 16, 16)
    expected = explain(SplitGrad(Balanced(.2)), network, image)
    assert_close(explain(SplitGrad(lambda name: Balanced(.2)), network, image), expected)
    names = [name for name, _ in network.named_modules()]
    assert_close(explain(SplitGrad({name: Balanced(.2) for name in names}), network, image), expected)
    assert repr(Balanced(.2)) == 'Balanced(kappa=0.2)' and Balanced(.2) == Balanced(.2) != Balanced(.1)


def test_balanced_where_no_gradient_of_the_sum_is_left():
    '''As that of a product of pairs whose sums are zero: the map is half of the gradient.'''
    model = nn.Sequential(nn.Linear(3, 4, bias=False), Calling(lambda x: (100. * x).square()), nn.Linear(4, 3)).double()
    points = random_image(2, 3)
    expected = explain(SplitGrad(.5), model, points)
    for stream in ('g', '+g'):
        assert_close(explain(SplitGrad(Balanced(1.), stream, recentering=Shifting()), model, points), expected)


def test_balanced_where_gradients_overflow():
    '''The map in float32 is the one in float64, up to a power of two where it is too large.'''
    torch.manual_seed(0)
    layers = [layer for _ in range(60) for layer in (nn.Linear(32, 32), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=2.)
        nn.init.zeros_(layer.bias)
    model, image = nn.Sequential(*layers), 1e-30 * random_image(2, 32, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        single = explain(SplitGrad(Balanced(), '+g'), model, image).double()
        double = explain(SplitGrad(Balanced(), '+g'), model.double(), image.double())
    assert double.abs().max() > 1e40
    size = [map.abs().amax(1, keepdim=True) for map in (single, double)]
    assert_close(single / size[0], double / size[1], 1e-6)


def test_rule_after_a_layer_and_a_relu_in_place():
    class Doubled(ShiftedSensitivity):
        def after(self, pair):
            return ruled(pair, lambda gradient, sum_gradient: (2 * gradient, sum_gradient))

    model, input, maps = with_layers(), random_image(2, 3, 8, 8), []
    for model[1].inplace in (False, True):
        maps += gradients(SplitGrad(.3, layer_map=[((nn.Conv2d,), Doubled(.3))]), model, input)
    assert torch.equal(*maps)


# the rounding of relevance in float32

def convolutional(channels, bias):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, bias=bias), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=bias), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 3, bias=bias)
    )


def dense(*widths, bias):
    layers = [each for pair in itertools.pairwise(widths) for each in (nn.Linear(*pair, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def blank(*shape, part=.2):
    return torch.rand(shape) < part


NARROW = {
    'narrow': (lambda bias: dense(4, 64, 3, bias=bias), lambda: torch.randn(64, 4)),
    'one feature': (lambda bias: dense(1, 16, 16, 3, bias=bias), lambda: torch.randn(64, 1)),
    'deep': (lambda bias: dense(4, 16, 16, 16, 3, bias=bias), lambda: torch.randn(64, 4)),
    'large inputs': (lambda bias: dense(4, 64, 3, bias=bias), lambda: 1000. * torch.randn(64, 4)),
    'few values': (lambda bias: dense(4, 64, 3, bias=bias), lambda: torch.randint(0, 4, (64, 4)) / 255.),
    'few features': (lambda bias: dense(1000, 64, 3, bias=bias),
                     lambda: torch.randn(64, 1000) * blank(64, 1000, part=.003)),
    'sparse images': (lambda bias: convolutional(3, bias),
                      lambda: torch.randn(32, 3, 12, 12).relu() * blank(32, 3, 12, 12)),
    'rectified images': (lambda bias: convolutional(1, bias), lambda: torch.randn(32, 1, 12, 12).relu()),
}


def relevances(composite, model, images, alone=False):
    seed = torch.eye(3, dtype=images.dtype)[torch.arange(len(images)) % 3]
    parts = zip(images.split(1), seed.split(1)) if alone else [(images, seed)]
    return torch.cat([Gradient(model, composite)(*part)[1].double() for part in parts])


@pytest.mark.filterwarnings('ignore:.*no relevance arrives')  # at an image that is zero
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('name', NARROW)
def test_rounding_of_relevance(name, bias):
    '''A map in float32 is that in float64, alone and in a batch, but for ten times what Zennit's rule on the original
    network loses, however small streams are.'''
    create, draw = NARROW[name]
    model, images = create(bias), draw()

    def losses(composite):
        exact = relevances(composite, copy.deepcopy(model).double(), images.double())
        size = exact.abs().flatten(1).amax(1).clamp(min=torch.finfo(torch.float32).tiny)
        for alone in (False, True):
            yield ((relevances(composite, model, images, alone) - exact).abs().flatten(1).amax(1) / size).max().item()

    epsilon = LayerMapComposite([((nn.Linear, nn.Conv2d), Epsilon(1e-6)), (nn.ReLU, Pass())])
    bound = 10. * max(*losses(epsilon), 16. * torch.finfo(torch.float32).eps)
    for stream in ('combined', 'positive', 'negative'):
        assert max(losses(SplitLRP(stream=stream))) <= bound


def test_quotient_of_a_stream_that_is_zero():
    '''It takes nothing from the other stream, and no other pass is made for it.'''
    model, calls = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)), []
    model[0].weight.data = torch.tensor([[1., 2.], [-3., -1.]])
    model[2].weight.data = torch.tensor([[1., 1.], [.1, .3]])
    model[0].register_forward_hook(lambda *_: calls.append(1))
    image = torch.tensor([[.3, .1]])
    for dtype in (torch.float32, torch.float64):
        model, calls[:] = model.to(dtype), []
        positive, negative = (
            relevances_of(SplitLRP(stream=stream, recentering=None), model, image.to(dtype))
            for stream in ('positive', 'negative')
        )
        # the streams are (0.5, 0) and (0, 1.0) before the ReLU, and (0.5, 1.0) and (0, 1.0) after it
        expected = torch.tensor([[.5 / 1.5 * .3 / .5, .5 / 1.5 * .2 / .5]])
        torch.testing.assert_close(positive.float(), expected, rtol=1e-5, atol=0)
        assert not negative.any() and len(calls) == 2


def relevances_of(composite, model, image):
    return Gradient(model, composite)(image, torch.tensor([[1., 0.]], dtype=image.dtype))[1]


def test_map_that_cannot_be_computed_in_float64():
    '''A warning says by how much it may be wrong, and why.'''
    weight = torch.tensor([[1., -.999], [1., 1.]])
    model = Calling(lambda x: torch.nn.functional.linear(x, weight).relu() @ torch.ones(2, 2))
    image = torch.tensor([[1e-5, 1.]])
    with pytest.warns(UserWarning, match='rounding may change the map of SplitLRP by.*float64'):
        map = relevances_of(SplitLRP(), model, image)
    assert map.dtype == torch.float32 and map.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        relevances_of(SplitLRP(), model, torch.tensor([[1., 1.]]))
