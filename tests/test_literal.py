'''Equality with the paper's equations, word by word in float64.'''
import pytest
import torch
from helpers import assert_close, explain, random_image
from literal import Network
from zennit.composites import MixedComposite, NameMapComposite

from zennit_dc import Relative, Scaling, Shifting, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.rules import SplitEpsilon


STREAMS = ('+g', '-g', 'g', '+h', '-h', 'h')
ALPHAS = (0., .1, .3, .4, .5)
LAYERS = ('conv1', 'norm1', 'pool', 'conv2', 'norm2', 'conv3', 'conv4', 'mean')
READ_AT = {**{layer: layer for layer in LAYERS}, 'norm1': 'relu1', 'norm2': 'relu2', 'conv4': 'relu4'}
UNIT = 2
# scaling is triggered in this network by a threshold of 1
RECENTERINGS = {
    'none': (None, None), 'scaling': (Scaling(.1, 1.), (.1, 1.)), 'shifting': (Shifting(), 'shifting'),
    'relative': (Relative(.3), .3),
}


@pytest.fixture(scope='module', name='network')
def fixture_network():
    return Network()


@pytest.fixture(scope='module', name='image')
def fixture_image():
    return random_image(3, 3, 16, 16)


def local_sensitivity(deltas, stream):
    plus, minus = deltas
    return {'+': plus, '-': minus}.get(stream[0], (plus - minus) / 2)


def activation(streams, stream):
    plus, minus = streams
    return {'+': plus, '-': minus}.get(stream[0], plus - minus)


@pytest.mark.parametrize('input_split', ['relu', 'half'])
@pytest.mark.parametrize('pooling', ['wta', 'convex'])
@pytest.mark.parametrize('alpha', ALPHAS)
def test_sensitivity_at_input(network, image, alpha, pooling, input_split):
    literal = network.literal(pooling)
    literal.forward(image, input_split)
    for stream in STREAMS:
        expected = local_sensitivity(literal.sensitivities(UNIT, stream[-1], alpha)['input'], stream)
        composite = SplitGrad(alpha, stream, pooling=pooling, input_split=input_split)
        assert_close(explain(composite, network, image), expected)


@pytest.mark.parametrize('input_split', ['relu', 'half'])
@pytest.mark.parametrize('pooling', ['wta', 'convex'])
@pytest.mark.parametrize('alpha, recentering', [
    *((.3, name) for name in RECENTERINGS), *((alpha, 'scaling') for alpha in ALPHAS if alpha != .3)
])
def test_sensitivities_at_layers(network, image, alpha, pooling, input_split, recentering):
    recentering, literal_recentering = RECENTERINGS[recentering]
    literal = network.literal(pooling)
    literal.forward(image, input_split, literal_recentering)
    kwargs = {'pooling': pooling, 'input_split': input_split, 'recentering': recentering}
    for stream in STREAMS:
        deltas = literal.sensitivities(UNIT, stream[-1], alpha)
        for layer in LAYERS if alpha == .3 else LAYERS[1::3]:
            delta = local_sensitivity(deltas[READ_AT[layer]], stream)
            if (STREAMS.index(stream) + LAYERS.index(layer)) % 2:  # one of the two, by turns
                composite, expected = SplitGrad(alpha, stream, layer, **kwargs), delta.mean(1)
            else:
                composite = SplitCAM(layer, alpha, stream, **kwargs)
                expected = (delta * activation(literal.streams[READ_AT[layer]], stream)).sum(1)
            explain(composite, network, image)
            assert_close(composite.saliency, expected)


@pytest.mark.parametrize('recentering', RECENTERINGS)
@pytest.mark.parametrize('epsilon, pooling, input_split', [
    (1e-6, 'wta', 'relu'), (1e-6, 'convex', 'half'), (.1, 'convex', 'relu'), (.1, 'wta', 'half')
])
def test_relevance(network, image, epsilon, pooling, input_split, recentering):
    recentering, literal_recentering = RECENTERINGS[recentering]
    literal = network.literal(pooling, merged=True)
    output = literal.forward(image, input_split, literal_recentering)[0]
    seed = torch.zeros_like(output)
    seed[:, UNIT] = 1.
    relevances = literal.relevances(seed, epsilon)
    kwargs = {'pooling': pooling, 'input_split': input_split, 'recentering': recentering}
    for stream in ('positive', 'negative', 'combined'):
        def read(name, stream=stream):
            plus, minus = relevances[name]
            return {'positive': plus, 'negative': minus}.get(stream, plus - minus)

        assert_close(explain(SplitLRP(epsilon, stream, **kwargs), network, image), read('input'))
        for layer in LAYERS:
            composite = SplitLRP(epsilon, stream, layer, **kwargs)
            explain(composite, network, image)
            # the output of a convolution into which a batch norm is merged is that of the batch norm
            merged = {'conv1': 'norm1', 'conv2': 'norm2'}.get(layer, layer)
            assert_close(composite.saliency, read(merged).sum(1))


def test_alpha_of_each_layer(network, image):
    alphas = {'': .05, 'conv1': .1, 'norm1': .2, 'conv2': .3, 'norm2': .4, 'conv3': .35, 'conv4': .5, 'dense': .25}
    literal = network.literal()
    literal.forward(image)
    # the network's norms belong to the convolutions before them: their alpha is not applied
    expected = literal.sensitivities(UNIT, 'g', alphas)
    for alpha in (alphas, alphas.get):
        gradient = explain(SplitGrad(alpha, 'g'), network, image)
        assert_close(gradient, local_sensitivity(expected['input'], 'g'))


def test_epsilon_of_one_layer_in_a_mixed_composite(network, image):
    literal = network.literal(merged=True)
    output = literal.forward(image, recentering=1.)[0]
    seed = torch.zeros_like(output)
    seed[:, UNIT] = 1.
    epsilons = dict.fromkeys([name for name, *_ in literal.nodes], 1e-6) | {'conv4': .5}
    composite = MixedComposite([NameMapComposite([(['conv4'], SplitEpsilon(.5))]), SplitLRP(stream='positive')])
    assert_close(explain(composite, network, image), literal.relevances(seed, epsilons)['input'][0])
    by_type = SplitLRP(stream='positive', layer_map=[(torch.nn.Linear, SplitEpsilon(.5))])
    epsilons.update(conv4=1e-6, dense=.5)
    assert_close(explain(by_type, network, image), literal.relevances(seed, epsilons)['input'][0])
