'''Any model as one from a tensor to a tensor.'''
import copy
from dataclasses import dataclass

import pytest
import torch
from helpers import assert_close, explain, random_image
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox, EpsilonPlus, GuidedBackprop

from zennit_dc import DetachedStatistics, Logits, SplitCAM, SplitGrad, SplitLRP, split_form
from zennit_dc.attribution import class_relevance
from zennit_dc.core.table import MODULE_FORMS


@dataclass
class Scores:
    logits: torch.Tensor
    states: torch.Tensor


class Returning(nn.Module):
    '''A model of a convolution and a linear layer, and what it returns of its scores and activations.'''
    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.dense, self.scale = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Parameter(torch.ones(5))
        self.wrap = wrap
        self.double().eval()

    def forward(self, pixels=None, other=None):
        states = F.relu(self.conv(pixels))
        return self.wrap(self.dense(states.mean((2, 3))) * self.scale, states)


SCORES = Returning(lambda scores, states: scores)
IMAGE = random_image(2, 3, 6, 6)


@pytest.mark.parametrize('wrap, output', [
    (lambda scores, states: scores, None), (Scores, None), (Scores, 'logits'), (lambda *both: both, 0),
    (lambda *both: both, -2), (lambda *both: dict(zip('ab', both)), 'a'), (lambda *both: dict(zip('ab', both)), 0),
    (lambda *both: dict(zip(('out', 'aux'), both)), None), (lambda scores, states: [scores], None),
    (lambda scores, states: {'scores': scores, 'loss': None}, None),
])
def test_outputs(wrap, output):
    model = Logits(Returning(wrap), output, input='pixels')
    assert torch.equal(model(IMAGE), SCORES(IMAGE))
    assert torch.equal(model(pixels=IMAGE), SCORES(IMAGE))
    for make in (SplitGrad, SplitLRP, lambda: SplitCAM('conv')):
        assert torch.equal(explain(make(), model, IMAGE), explain(make(), SCORES, IMAGE))


@pytest.mark.parametrize('wrap', [
    lambda scores, states: (scores, scores.mean()), lambda scores, states: {'loss': states.sum(), 'scores': scores}
])
def test_scalars_are_no_choice(wrap):
    model = Logits(Returning(wrap))
    assert torch.equal(model(IMAGE), SCORES(IMAGE))
    assert torch.equal(explain(SplitGrad(), model, IMAGE), explain(SplitGrad(), SCORES, IMAGE))
    with pytest.raises(ValueError, match=r'2 \(\): choose one.*--output 0$'):
        Logits(Returning(lambda scores, states: (scores, states, scores.sum())))(IMAGE)


@pytest.mark.parametrize('wrap, output, said', [
    (lambda *both: both, None, r"tuple with 0 \(2, 5\), 1 \(2, 4, 4, 4\): choose one.*output=0\), or --output 0"),
    (Scores, 'logit', r"Scores with 'logits' \(2, 5\), 'states' \(2, 4, 4, 4\), and no tensor 'logit'"),
    (lambda *both: {'a': both}, 'a', "dict with 'a' tuple"), (lambda *both: 'text', None, 'str with nothing in it'),
    (lambda scores, states: scores, 'logits', 'returns one tensor'), (lambda *both: both, 7, 'no tensor 7'),
])
def test_outputs_that_are_not_there(wrap, output, said):
    with pytest.raises(ValueError, match=said):
        Logits(Returning(wrap), output)(IMAGE)


def test_it_is_the_model():
    model = Returning(Scores)
    logits = Logits(model)
    names = dict(model.named_modules())
    assert dict(logits.named_modules()).keys() == names.keys()
    assert [name for name, _ in logits.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert logits.state_dict().keys() == model.state_dict().keys()
    logits.load_state_dict({name: 2 * tensor for name, tensor in model.state_dict().items()})
    assert torch.equal(model.scale, torch.full((5,), 2.).double())
    logits.train()
    assert model.training and model.conv.training and logits.training
    model.eval()
    assert not logits.training
    assert logits.float() is logits and model.scale.dtype == torch.float32
    copied = copy.deepcopy(logits)
    copied.scale.data.zero_()
    assert copied.model is not model and copied.model.scale is copied.scale and model.scale.all()
    assert 'output=' not in repr(logits) and 'conv' in repr(logits)


def test_rules_of_zennit():
    expected = Gradient(SCORES, EpsilonPlus())(IMAGE, class_relevance(1))[1]
    assert torch.equal(Gradient(Logits(Returning(Scores)), EpsilonPlus())(IMAGE, class_relevance(1))[1], expected)
    plain = nn.Linear(6, 3).double()
    pixels = random_image(2, 6)
    expected = Gradient(plain, EpsilonPlus())(pixels, class_relevance(1))[1]
    assert torch.equal(Gradient(Logits(plain), EpsilonPlus())(pixels, class_relevance(1))[1], expected)


def test_form_of_the_model_itself():
    class Own(nn.Module):
        def forward(self, x):
            return x.cumprod(1)

    split_form(Own)(lambda module, pair: pair * 2)
    try:
        assert not torch.equal(explain_output(Logits(Own())), Own()(IMAGE))
    finally:
        del MODULE_FORMS[Own]


def explain_output(model):
    with SplitGrad().context(model):
        return model(IMAGE)


class Ending(nn.Module):
    '''A model that ends with a function, with attention before.'''
    def __init__(self, end, wrap=lambda scores: scores):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.dense, self.end, self.wrap = nn.Linear(6, 6), nn.Linear(6, 5), end, wrap
        self.double().eval()

    def forward(self, x):
        x = self.norm(x)
        x = torch.softmax(x @ x.mT, -1) @ x
        return self.wrap(self.end(self.dense(x.mean(1))))


@pytest.mark.parametrize('end', [
    nn.Softmax(1), nn.LogSoftmax(1), lambda x: F.softmax(input=x, dim=1), lambda x: x.log_softmax(1),
    lambda x: torch.special.softmax(x, 1),
])
@pytest.mark.parametrize('wrap', [lambda scores: scores, lambda scores: Scores(scores, None)])
def test_softmax_at_the_end(end, wrap):
    model, tokens, bare = Ending(end, wrap), random_image(2, 4, 6), Ending(lambda x: x)
    for canonizers in (None, 'auto', [DetachedStatistics()]):
        with SplitGrad(canonizers=canonizers).context(model), pytest.raises(NotImplementedError, match='drop=.softmax'):
            model(tokens)
    logits = Logits(model, drop='softmax')
    assert torch.equal(logits(tokens), bare(tokens))
    for make in (SplitGrad, SplitLRP):
        expected = explain(make(canonizers=[DetachedStatistics()]), bare, tokens)
        assert_close(explain(make(canonizers=[DetachedStatistics()]), logits, tokens), expected)


@pytest.mark.parametrize('end', [nn.Softmax(1), nn.LogSoftmax(1), lambda x: F.softmax(x, dim=1)])
@pytest.mark.parametrize('composite', [EpsilonPlus, lambda: EpsilonGammaBox(low=-4., high=4.), GuidedBackprop])
def test_softmax_at_the_end_inside_of_zennits_composites(end, composite):
    '''At the first call, and at those that follow.'''
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    whole = Closed(body, end).double().eval()
    image, maps = random_image(2, 3, 6, 6), []
    for model in (body, Logits(whole, drop='softmax')):
        with Gradient(model, composite()) as attributor:
            maps.append([attributor(image, class_relevance(2)) for _ in range(2)])
    for (logits, expected), (output, map) in zip(*maps, strict=True):
        assert torch.equal(output, logits) and torch.equal(map, expected) and map.any()


class Closed(nn.Module):
    '''A model with a module or function at its end.'''
    def __init__(self, body, end):
        super().__init__()
        self.body, self.end = body, end

    def forward(self, input):
        return self.end(self.body(input))


class Overwriting(nn.Module):
    '''A model that changes its input in place.'''
    def forward(self, input):
        return input.mul_(2.).flatten(1).softmax(1)


def test_the_input_is_changed_once():
    image = random_image(2, 3)
    assert torch.equal(Logits(Overwriting(), drop='softmax')(image.clone()), 2 * image)


def test_no_softmax_to_drop():
    for end in (lambda x: x, lambda x: x.softmax(1) * 2):
        with pytest.raises(ValueError, match='does not end with a softmax'):
            Logits(Ending(end), drop='softmax')(random_image(2, 4, 6))
    with pytest.raises(ValueError, match='drop must be'):
        Logits(SCORES, drop='relu')
    with pytest.raises(TypeError, match='needs a model'):
        Logits(lambda x: x)


def test_another_softmax_is_the_last():
    class Steps(nn.Module):
        def forward(self, x):
            for _ in range(int(x.shape[0])):
                x = x.softmax(1)
            return x

    model = Logits(Steps(), drop='softmax')
    assert torch.equal(model(IMAGE[:1]), IMAGE[:1])
    with pytest.raises(ValueError, match='another softmax'):
        model(IMAGE)
