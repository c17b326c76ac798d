'''What a model needs, and canonizers that are chosen by themselves.'''
import warnings

import pytest
import torch
from helpers import explain, gradient_of, random_image
from small_models import SHAPE, Between
from torch import nn
from torch.nn import functional as F

from zennit_dc import DetachedActivations, DetachedStatistics, SmoothReplacement, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.core.needs import OPTIONS, relative_deviation
from zennit_dc.core.table import OVERLAYS


IMAGE = random_image(2, 4, 6)


class Mixed(nn.Module):
    '''A block with normalization, attention and activations, and a function in its midst.'''
    def __init__(self, function=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList([nn.LayerNorm(6), nn.LayerNorm(6)])
        self.mlp, self.head, self.function = nn.Sequential(nn.Linear(6, 6), nn.GELU()), nn.Linear(6, 3), function
        self.double().eval()

    def forward(self, x):
        x = self.norms[0](x)
        x = x + torch.softmax(x @ x.mT, -1) @ x
        x = self.function(self.mlp(self.norms[1](x)))
        return self.head(F.silu(x, inplace=True).mean(1))


@pytest.fixture(name='no_warnings', autouse=True)
def fixture_no_warnings():
    '''A warning that no test expects is an error.'''
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


@pytest.mark.parametrize('canonizers, parts', [
    (None, ("layer_norm, called in module 'norms.0' (LayerNorm)", 'DetachedStatistics() (--canonizer attention)')),
    ([], ("layer_norm, called in module 'norms.0' (LayerNorm)", 'DetachedStatistics() (--canonizer attention)')),
    ([DetachedStatistics()], (
        "silu, called in module '' (Mixed)",
        'DetachedActivations() (--canonizer activations) or SmoothReplacement() (--canonizer smooth)',
    )),
    ([DetachedActivations()], ('layer_norm', 'DetachedStatistics() (--canonizer attention)')),
])
def test_error_names_function_module_and_option(canonizers, parts):
    '''And the way to have all options at once.'''
    with SplitGrad(canonizers=canonizers).context(model := Mixed()), pytest.raises(NotImplementedError) as error:
        model(IMAGE)
    for part in (*parts, "canonizers='auto' (--canonizer auto)"):
        assert part in str(error.value)
    assert len(str(error.value)) < 500  # which is what the command line shows


@pytest.mark.parametrize('canonizers', ['auto', [DetachedStatistics(), DetachedActivations()]])
def test_what_no_option_helps_is_refused(canonizers):
    model = Mixed(lambda x: x.cumprod(1) + x)
    with SplitGrad(canonizers=canonizers).context(model), pytest.raises(NotImplementedError) as error:
        model(IMAGE)
    assert "cumprod, called in module '' (Mixed), has no split form" in str(error.value)
    assert not OVERLAYS.get(model)


def test_an_option_that_does_not_help_is_not_asked_for():
    '''It has a form for the function, which refuses this call.'''
    model = Between(lambda x: torch.linalg.norm(x, ord='nuc', dim=(2, 3), keepdim=True) + x)
    for canonizers in ('auto', [DetachedStatistics()]):
        with SplitGrad(canonizers=canonizers).context(model), pytest.raises(NotImplementedError) as error:
            model(random_image(*SHAPE))
        assert 'ord=' in str(error.value) and 'canonizers' not in str(error.value)


def test_each_option_runs_the_model_once_more():
    model, calls, composite = Mixed(), [], SplitGrad()
    model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    model.mlp.register_forward_pre_hook(lambda *_: calls.append('mlp'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for expected in (4, 1):  # once for each option, and once as it is and for what constants leave out
            calls.clear()
            explain(composite, model, IMAGE)
            assert calls.count('mlp') == expected + 1  # and by explain, without a composite


def test_auto():
    model, composites = Mixed(), [
        SplitGrad(), SplitLRP(), SplitGrad(layer='mlp')
    ]
    for composite, make in zip(composites[:2], (SplitGrad, SplitLRP)):
        expected = explain(make(canonizers=[DetachedStatistics(), DetachedActivations()]), model, IMAGE)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('ignore')
            warnings.simplefilter('always', UserWarning)
            map = explain(composite, model, IMAGE)
        assert torch.equal(map, expected) and not OVERLAYS[model]
        words, = (str(warning.message) for warning in said)
        for part in (
            "DetachedStatistics() for layer_norm in module 'norms.0' (LayerNorm), and",
            "DetachedActivations() for silu in module '' (Mixed)", 'output is bit-identical',
            'Constants are layer_norm, softmax: ',
        ):
            assert part in words
        assert torch.equal(explain(composite, model, IMAGE), expected)  # and says nothing


def test_auto_where_nothing_is_needed(network, image):
    '''No warning, and the maps of no canonizer.'''
    for make in (SplitGrad, SplitLRP, lambda **kwargs: SplitCAM('pool', **kwargs)):
        assert torch.equal(explain(make(), network, image), explain(make(canonizers=None), network, image))


def test_auto_follows_the_control_flow():
    model = Mixed(lambda x: torch.tanh(x) if x.shape[0] > 1 else x)
    composite = SplitGrad()
    for count in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            explain(composite, model, IMAGE[:count])
    relu = Between(lambda x: torch.softmax(x, 1) * x if x.shape[0] > 1 else F.silu(x))
    for count in (1, 2):
        with pytest.warns(UserWarning, match='silu' if count == 1 else 'silu.*softmax in module'):
            explain(composite, relu, random_image(*SHAPE)[:count])


def test_wrong_choice():
    with pytest.raises(ValueError, match='canonizers must be'):
        SplitGrad(canonizers='smooth')


def test_replacement_that_changes_the_model():
    model, image = Between(nn.Sigmoid()), random_image(*SHAPE)
    with pytest.warns(UserWarning, match=r'WRONG MODEL.*deviates by \d+\.\d+%.*DetachedActivations\(\)'):
        run(SplitGrad(canonizers=[SmoothReplacement(.3)]), model, image)
    run(SplitGrad(canonizers=[SmoothReplacement(1e-4)]), model, image)  # says nothing


def run(composite, model, image):
    with composite.context(model):
        return model(image)


def test_relative_deviation():
    original = torch.tensor([[1., -1., 1., -1.], [10., -10., 10., -10.]])
    other = original + torch.tensor([[.1], [.1]])
    assert relative_deviation(other, original) == pytest.approx(.1)
    assert relative_deviation({'a': [original, None]}, {'a': [original, None]}) == 0.
    assert relative_deviation(torch.tensor([[2.2]]), torch.tensor([[2.]])) == pytest.approx(.1)
    assert relative_deviation(torch.ones(1, 3), torch.zeros(1, 3)) == float('inf')


def test_options_by_name():
    assert set(OPTIONS) == {'attention', 'activations', 'smooth'}
    assert [option.is_exact for option in OPTIONS.values()] == [True, True, False]


class Box:
    '''An object of which nobody knows that there is a tensor in it.'''
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize('canonizers', [None, 'auto'])
@pytest.mark.parametrize('end, words', [
    (Box, 'an object of type Box, in which no tensors are found: return tensors'),
    (lambda logits: (each for each in [logits]), r'of type generator, .*list\(generator\)'),
    (lambda logits: {'all': Box(logits)}, 'of type Box in a dict, '),
    (lambda logits: torch.zeros(2, 3), r'no part of the output, Tensor, depends on the input.*\.detach\(\)'),
])
def test_outputs_without_a_pair(end, words, canonizers):
    model = Mixed(lambda x: F.relu(x))
    forward = model.forward
    model.forward = lambda x: end(forward(x))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        options = canonizers or [DetachedStatistics(), DetachedActivations()]
        with SplitGrad(canonizers=options).context(model), pytest.raises(NotImplementedError, match=words):
            model(IMAGE)


def said_of(function):
    '''What is said of the options that are chosen for a function between convolutions.'''
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        run(SplitGrad(), Between(function), random_image(*SHAPE))
    words, = (str(warning.message) for warning in said)
    return words


def test_what_constants_leave_out():
    '''It is said by name, and how much of the gradient it is: that of the model without what constants get.'''
    def scaled(h, scale=None):
        return h * (h.std((2, 3), keepdim=True) if scale is None else scale)

    image = random_image(*SHAPE).requires_grad_()
    model = Between(scaled)
    scores = model(image)
    classes = scores.argmax(1)
    whole, = torch.autograd.grad(scores.amax(1).sum(), image)
    model.function = lambda h: scaled(h, h.std((2, 3), keepdim=True).detach())
    constant, = torch.autograd.grad(model(image)[range(len(classes)), classes].sum(), image)
    share = (whole - constant).norm() / whole.norm()
    assert f'Constants are std: what the largest score gets through them is left out, {share:.0%} of' in said_of(scaled)
    assert 'left out' not in said_of(lambda h: torch.cat([h, h.std(1, keepdim=True)], 1)[:, 1:])
    assert 'Constants are group_norm, softmax' in said_of(lambda h: torch.softmax(F.group_norm(h, 2), 1) * h)


def test_functions_without_a_form_that_are_not_part_of_the_output():
    '''What is left out is said all the same, as of a detector whose boxes are not explained.'''
    def normalized(h):
        torch.sigmoid(h)
        return F.group_norm(h, 2)

    assert said_of(normalized) == said_of(lambda h: F.group_norm(h, 2))


def test_gradient_is_kept_for_exact_models(network, image):
    assert torch.equal(explain(SplitGrad(.5), network, image), gradient_of(network, image) / 2)
