'''A model into split form and back.'''
import copy
import io
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from helpers import assert_close, explain, gradient_of, random_image
from literal import Network
from small_models import METHODS, Between, Calls
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, make_layers
from zennit.attribution import Gradient
from zennit.canonizers import AttributeCanonizer, CompositeCanonizer, NamedMergeBatchNorm, SequentialMergeBatchNorm
from zennit.composites import MixedComposite, NameMapComposite
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import Epsilon
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer, ResNetCanonizer, VGGCanonizer

from zennit_dc import DetachedStatistics, SplitCAM, SplitCanonizer, SplitGrad, SplitLRP
from zennit_dc.attribution import class_relevance


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


def with_statistics(model):
    '''A model in float64 whose batch norms do something, and have no epsilon, which canonizers leave in them.'''
    for module in model.double().eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.
            for tensor, low, high in ((module.running_mean, -.2, .2), (module.running_var, .5, 2.),
                                      (module.weight.data, .5, 1.5), (module.bias.data, -.2, .2)):
                tensor.uniform_(low, high)
    return model


def resnet(block):
    '''A residual network of torchvision, as small as its blocks allow.'''
    return with_statistics(ResNet(block, [1, 1, 1, 1], num_classes=4))


def vgg():
    '''A small network of the kind of VGG, with batch norms.'''
    features = make_layers([8, 'M', 16, 'M'], batch_norm=True)
    model = VGG(features, num_classes=4)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(2), nn.Linear(64, 4)
    return with_statistics(model)


def rewritten(name, module):
    '''An attribute for each ReLU: its forward, written in another way.'''
    return {'forward': lambda input: input.clamp(min=0.)} if isinstance(module, nn.ReLU) else None


CANONIZERS = {
    'SequentialMergeBatchNorm': (vgg, SequentialMergeBatchNorm), 'VGGCanonizer': (vgg, VGGCanonizer),
    'NamedMergeBatchNorm': (vgg, lambda: NamedMergeBatchNorm([(['features.0'], 'features.1')])),
    'AttributeCanonizer': (vgg, lambda: AttributeCanonizer(rewritten)),
    'CompositeCanonizer': (vgg, lambda: CompositeCanonizer([VGGCanonizer(), AttributeCanonizer(rewritten)])),
    'ResNetBasicBlockCanonizer': (partial(resnet, BasicBlock), ResNetBasicBlockCanonizer),
    'ResNetBottleneckCanonizer': (partial(resnet, Bottleneck), ResNetBottleneckCanonizer),
    'ResNetCanonizer': (partial(resnet, BasicBlock), ResNetCanonizer),
    'ResNetCanonizer of bottlenecks': (partial(resnet, Bottleneck), ResNetCanonizer),
}


@pytest.mark.parametrize('name', CANONIZERS)
def test_zennits_canonizers_change_no_map(name):
    build, canonizer = CANONIZERS[name]
    model, input = build(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    layer = 'layer2.0' if hasattr(model, 'layer2') else 'features.2'
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for composite in (SplitLRP, SplitGrad, partial(SplitCAM, layer), partial(SplitLRP, layer=layer)):
        maps = []
        for chosen in ([canonizer()], []):
            with Gradient(model, composite(canonizers=chosen)) as attributor:
                maps.append(attributor(input, class_relevance(2))[1])
        assert_close(*maps)
    after = model.state_dict()
    assert all(torch.equal(after.pop(key), value) for key, value in before.items())
    assert not any(value.any() for value in after.values())  # Zennit 1.0 leaves biases of zeros


class Summed(nn.Module):
    '''A residual network whose addition of two branches and the input is one of Zennit's modules.'''
    def __init__(self, dim):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.sum, self.end = Sum(dim), nn.Linear(3, 4)

    def forward(self, input):
        summands = [input, *(branch(input) for branch in self.branches)]
        output = self.sum(torch.stack(summands, self.sum.dim))
        return self.end(output.relu().mean((2, 3)))


@pytest.mark.parametrize('dim', [-1, 0, 2])
def test_the_sum_of_zennit_shares_evenly(dim, image):
    model = Summed(dim).double().eval()
    whole, *shares = (explain(SplitLRP(layer=layer), model, image) for layer in ('sum', 'branches.0', 'branches.1'))
    for share in shares:
        assert_close(3 * share, whole)


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
        with pytest.raises(NotImplementedError, match='output, dict, depends'):
            model(torch.ones(2, 3, dtype=torch.int64))
        with pytest.raises(NotImplementedError, match='without a floating point tensor'):
            model(None)


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


@pytest.mark.skipif(not hasattr(torch.compiler, 'set_stance'), reason='needs torch 2.6')
@pytest.mark.parametrize('composite', [SplitGrad(), SplitLRP(), SplitCAM('before')])
def test_compiled_functions_run_as_what_they_were_made_of(composite):
    def function(x):
        return x.relu() * 2

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    graphs, image = [], random_image(2, 4, 6, 6)
    compiled, plain = Between(torch.compile(function, backend=count)), Between(function)
    expected = explain(composite, plain, image)
    assert torch.equal(explain(composite, compiled, image), expected)
    graphs.clear()
    torch.compiler.reset()
    compiled(image)
    assert graphs  # compiled again outside of the context
