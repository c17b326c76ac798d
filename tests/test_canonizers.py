'''A model into split form and back.'''
import copy
import io
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from helpers import explain, gradient_of
from literal import Network
from small_models import METHODS, Calls
from torch import nn
from torch.nn import functional as F
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import MixedComposite, NameMapComposite
from zennit.core import Composite
from zennit.rules import Epsilon

from zennit_dc import DetachedStatistics, Logits, SplitCAM, SplitCanonizer, SplitGrad, SplitLRP
from zennit_dc.nested import modules_of


def test_bare_canonizer_gives_the_original_gradient(network, image):
    assert torch.equal(explain(Composite(canonizers=[SplitCanonizer()]), network, image), gradient_of(network, image))


def test_other_canonizers_are_applied_before(image):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).double().eval()
    model[1].running_mean.normal_()
    merged = copy.deepcopy(model)
    SequentialMergeBatchNorm().apply(merged)
    with torch.no_grad():
        expected = merged(image)
    with SplitLRP(canonizers=[SequentialMergeBatchNorm()]).context(model):
        assert torch.equal(model(image), expected)
        assert torch.equal(model[1].weight, torch.ones(4, dtype=torch.float64))
    assert not torch.equal(model(image), expected)


def test_modules_in_pytorchs_order():
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.Sequential(OrderedDict(a=shared, b=nn.Sequential(nn.Sequential(shared), nn.ReLU()), c=shared[0], d=None))
    for root in (model, Logits(model), nn.ReLU()):
        assert list(modules_of(root)) == list(root.modules())


@pytest.mark.parametrize('change, message', [
    (lambda model: model[1].append(nn.BatchNorm2d(4).train()), "'1.0'"),
    (lambda model: Epsilon().register(model[0]), 'Epsilon of module'),
    (lambda model: setattr(model, '2', nn.Sequential(nn.BatchNorm2d(4))), "'2.0'"),
])
def test_changes_inside_of_a_context_are_noticed(change, message, image):
    '''What every forward pass requires of a model, it requires of the modules that it has then.'''
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(), nn.ReLU()).double().eval()
    with SplitGrad().context(model):
        model(image)
        change(model)
        with pytest.raises((RuntimeError, TypeError), match=message):
            model(image)


def test_keyword_input(network, image):
    image.requires_grad_()
    with SplitGrad(.5).context(network):
        gradient, = torch.autograd.grad(network(x=image)[:, 2].sum(), image)
    assert torch.equal(gradient, gradient_of(network, image) / 2)


def test_inputs_and_outputs_without_tensors():
    class Constant(nn.Module):
        def forward(self, x):
            return {'out': torch.ones(2)}

    with SplitGrad().context(model := Constant()):
        with pytest.raises(NotImplementedError, match='output, dict, depends'):
            model(torch.randn(2, 3))
        with pytest.raises(NotImplementedError, match='without a floating point tensor'):
            model(torch.ones(2, 3, dtype=torch.int64))


@dataclass(frozen=True)
class Scores:
    logits: torch.Tensor
    states: tuple = ()


class Named(OrderedDict):
    pass


@pytest.mark.parametrize('wrap, unwrap', [
    (lambda x: Scores(x, (x,)), lambda output: output.logits), (lambda x: Named(y=[x, 'text']), lambda o: o['y'][0]),
    (lambda x: {'out': Scores(x)}, lambda output: output['out'].logits),
])
def test_containers(network, image, wrap, unwrap):
    class Wrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.wrapped = network, nn.Identity()

        def forward(self, x):
            return wrap(self.wrapped(Scores(self.network(x.logits), x.states)).logits)

    model, pixels = Wrapping().eval(), image.clone().requires_grad_()
    expected = model(Scores(pixels))
    with SplitGrad(.5).context(model):
        output = model(Scores(pixels))
        map, = torch.autograd.grad(unwrap(output).sum(), pixels)
    assert type(output) is type(expected) and torch.equal(unwrap(output), unwrap(expected))
    assert torch.equal(map, torch.autograd.grad(unwrap(expected).sum(), pixels)[0] / 2)


def test_scores_that_do_not_depend_on_the_input(image):
    zero = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)).double()
    nn.init.zeros_(zero[3].weight)
    for make in (SplitGrad, SplitLRP, lambda: SplitCAM('0')):
        with pytest.raises(ValueError, match='score does not depend on the input'):
            explain(make(), zero, image)
    norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)).double()
    nn.init.zeros_(norm[1].weight)  # as norms of residual branches start
    for make in (SplitGrad, SplitLRP, partial(SplitCAM, '0')):
        with pytest.raises(ValueError, match=r'score does not depend on the input.*1\.weight is zero'):
            explain(make(canonizers=[DetachedStatistics()]), norm, image)
    dark = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)).double()
    dark[0].weight.data.abs_()
    assert not explain(SplitGrad(.5), dark, -image.abs()).any()  # a gradient of zero, but not for other inputs


@pytest.mark.parametrize('layer', [
    nn.BatchNorm2d(4), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), F.dropout, F.dropout2d,
    nn.BatchNorm2d(4, track_running_stats=False).eval(), lambda x: F.batch_norm(x, None, None, training=True),
])
def test_training_mode(layer):
    model = Calls(layer)
    with SplitGrad().context(model), pytest.raises(RuntimeError, match=r'eval\(\)'):
        model(torch.randn(1, 3, 8, 8))


def test_hooks_of_the_user_keep_firing(network, image):
    seen = []
    network.conv1.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    explain(SplitGrad(), network, image)
    assert seen == [(2, 8, 16, 16)] * 2


# the model is left as it was

def state_of(model):
    return [
        (
            name, module, dict(module.__dict__), list(module._forward_hooks), list(module._forward_pre_hooks),
            {key: (value, value.requires_grad, value.clone()) for key, value in module._parameters.items()
             if value is not None},
            {key: value.clone() for key, value in module._buffers.items()},
        ) for name, module in model.named_modules()
    ]


def assert_untouched(model, before):
    after = state_of(model)
    assert len(after) == len(before)
    for old, new in zip(before, after):
        assert old[:2] == new[:2] and old[3:5] == new[3:5]
        assert old[2].keys() == new[2].keys()
        assert all(new[2][key] is value for key, value in old[2].items())
        for key, (parameter, requires_grad, value) in old[5].items():
            assert new[5][key][0] is parameter and parameter.requires_grad == requires_grad
            assert torch.equal(value, new[5][key][2]) and parameter.grad is None
        assert all(torch.equal(value, new[6][key]) for key, value in old[6].items())


@pytest.mark.parametrize('method', METHODS)
def test_model_is_untouched(network, image, method):
    network.conv1.weight.requires_grad_(False)
    before = state_of(network)
    explain(METHODS[method](), network, image)
    assert_untouched(network, before)
    with pytest.raises(ZeroDivisionError), METHODS[method]().context(network):
        network(image)
        raise ZeroDivisionError
    assert_untouched(network, before)
    network.train()
    training = state_of(network)
    with pytest.raises(RuntimeError, match='eval'), METHODS[method]().context(network):
        network(image)
    assert_untouched(network, training)
    assert torch.is_grad_enabled()


def test_own_forward_attribute_survives(network, image):
    plain = network.forward
    network.forward = lambda x: plain(x) * 2
    own = network.forward
    assert torch.equal(explain(SplitGrad(.5), network, image), gradient_of(network, image) / 2)
    assert network.__dict__['forward'] is own


def test_nested_contexts(network, image):
    before = state_of(network)
    other = Network(1)
    with SplitGrad().context(network):
        expected = network(image)
        with pytest.raises(RuntimeError, match='split form already'), SplitLRP().context(network):
            pass
        with SplitLRP().context(other):
            assert torch.equal(network(image), expected)
            other(image)
        with SplitGrad().context(network.dense), pytest.raises(RuntimeError, match='nested'):
            network(image)
        assert torch.equal(network(image), expected)
    assert_untouched(network, before)


def test_context_that_can_not_be_entered(network):
    before = state_of(network)
    for composite in (SplitCAM('conv9'), SplitGrad({'': .3}), SplitGrad({'': .3, 'conv9': .2})):
        with pytest.raises(ValueError, match='conv'), composite.context(network):
            pass
        assert_untouched(network, before)


def test_mixed_composite_that_can_not_be_entered(network):
    before = state_of(network)
    mixed = MixedComposite([NameMapComposite([]), SplitGrad({'': .3})])
    with pytest.raises(ValueError, match='conv1'), mixed.context(network):
        pass
    assert_untouched(network, before)


class Dropping(nn.Module):
    '''Stochastic depth as libraries write it.'''
    def forward(self, x):
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(.5) if self.training else x


def test_training_mode_of_modules_that_draw():
    model, image = nn.Sequential(nn.Conv2d(3, 4, 1), Dropping(), nn.Flatten()), torch.ones(2, 3, 4, 4)
    with SplitGrad().context(model.train()), pytest.raises(RuntimeError, match=r'random numbers are drawn.*\.eval\(\)'):
        model(image)
    assert explain(SplitGrad(), model.eval(), image, 1).abs().max() > 0
    # what draws nothing may be in training mode
    model[0].train()
    assert explain(SplitGrad(), model, image, 1).abs().max() > 0


def test_model_is_not_copied_or_saved_in_a_context(network, image):
    for composite in (SplitGrad(), SplitLRP()):
        with composite.context(network):
            with pytest.raises(RuntimeError, match='outside of the composite'):
                copy.deepcopy(network)
            with pytest.raises(RuntimeError, match='outside of the composite'):
                torch.save(network, io.BytesIO())
        assert torch.equal(copy.deepcopy(network)(image), network(image))


@pytest.mark.parametrize('scripted', [
    torch.jit.script, lambda model: torch.jit.freeze(torch.jit.script(model)),
    lambda model: torch.jit.trace(model, torch.ones(1, 3, 4, 4)),
])
def test_scripted_models_are_named(scripted):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = scripted(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten()).eval())
    with pytest.raises(TypeError, match='is scripted or traced by torch.jit'), SplitGrad().context(model):
        pass


def compiled_in_place(model):
    model.compile(backend='eager')
    return model


@pytest.mark.parametrize('compiled, layer', [
    (partial(torch.compile, backend='eager'), '0'), (partial(torch.compile, backend='eager'), '_orig_mod.0'),
    (compiled_in_place, '0'), (lambda model: nn.Sequential(torch.compile(model, backend='eager')), '0.0'),
])
def test_compiled_models_run_as_what_they_were_made_of(compiled, layer):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).double().eval()
    image = torch.randn(2, 3, 6, 6).double()
    expected = explain(SplitGrad(layer='0'), plain, image)
    model = compiled(copy.deepcopy(plain))
    before = [dict(vars(module)) for module in model.modules()]
    assert torch.equal(explain(SplitGrad(layer=layer), model, image), expected)
    for module, attributes in zip(model.modules(), before):
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items())
